// A thread pool of our own: workers sleep on a condition variable (never spin), are made on first use, and are
// forgotten in a forked child, which makes its own.

#pragma once

#include <cstdint>
#include <functional>

namespace radconv::cpu {

// Runs task(0) .. task(count - 1) on up to `threads` threads, the caller among them, and returns when all are done.
// Tasks are handed out in order, whoever is free takes the next; several callers may be inside at once.  What a task
// throws is thrown here, once no task runs any more.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& task);

}  // namespace radconv::cpu
