// Who runs tasks: the OpenMP threads that torch's own operators run on, where the process has them, since other threads
// would compete with them (they spin for a while after each operator).  Otherwise, and in a forked child, where such a
// runtime would wait for threads that were not forked, a pool of our own, whose threads never spin.

#pragma once

#include <cstdint>
#include <functional>

namespace radconv::cpu {

// Runs task(0) .. task(count - 1) on up to `threads` threads, the caller among them, and returns when all are done.
// Tasks are handed out in order, whoever is free takes the next; several callers may be inside at once.  What a task
// throws is thrown here, once no task runs any more.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& task);

// From now on threads of our own: for a process that was forked before this library was loaded.
void leave_openmp();

}  // namespace radconv::cpu
