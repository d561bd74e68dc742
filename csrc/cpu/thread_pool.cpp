#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace radconv::cpu {
namespace {

struct Job {
  Job(const std::function<void(int64_t)>& given, int64_t tasks, int helpers)
      : task(given), count(tasks), helpers_wanted(helpers) {}

  const std::function<void(int64_t)>& task;
  const int64_t count;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr failure;  // what the first task that failed threw, to be read when nobody works any more
  int helpers_wanted;          // guarded by Pool::mutex_, as the one below
  int helpers_inside = 0;

  void work() noexcept {
    try {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(i);
    } catch (...) {
      next.store(count, std::memory_order_relaxed);  // no further task starts
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  }
};

class Pool {
 public:
  void run(Job& job, int helpers) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      try {
        for (; workers_ < helpers; ++workers_) std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
        // no more threads to be had: those there are, the caller at least, do the work
      }
      jobs_.push_back(&job);
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    // nobody may enter any more; those inside still use `job`, which lives on this stack
    jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end());
    left_.wait(lock, [&] { return job.helpers_inside == 0; });
  }

 private:
  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return !jobs_.empty(); });
      Job* job = jobs_.front();
      if (--job->helpers_wanted <= 0) jobs_.pop_front();
      ++job->helpers_inside;
      lock.unlock();
      job->work();
      lock.lock();
      if (--job->helpers_inside == 0) left_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, left_;
  std::deque<Job*> jobs_;
  int workers_ = 0;
};

// Leaked on purpose: workers outlive every static object, and a forked child must not touch its parent's mutexes.
std::atomic<Pool*> current{nullptr};

Pool& pool() {
  Pool* found = current.load(std::memory_order_acquire);
  if (found == nullptr) {
    Pool* made = new Pool;
    if (current.compare_exchange_strong(found, made)) return *made;
    delete made;
  }
  return *found;
}

std::atomic<bool> left_openmp{false};

#if defined(__unix__) || defined(__APPLE__)
// GNU's entry point of an OpenMP runtime: calls the function on each thread of a team, the caller's among them.
using Team = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

// Registered when the library is loaded: a process may use OpenMP and fork before it comes here.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] {
  leave_openmp();
  current.store(nullptr);
});

// Null where there is none, or where it must not be used.
Team openmp_team() {
  static const Team team = reinterpret_cast<Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return left_openmp.load(std::memory_order_relaxed) ? nullptr : team;
}
#endif

void run(Job& job, int helpers) {
#if defined(__unix__) || defined(__APPLE__)
  if (const Team team = openmp_team())
    return team([](void* given) { static_cast<Job*>(given)->work(); }, &job, static_cast<unsigned>(helpers + 1), 0);
#endif
  pool().run(job, helpers);
}

}  // namespace

void leave_openmp() { left_openmp.store(true); }

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& task) {
  const int helpers = static_cast<int>(std::min<int64_t>(threads, count)) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  Job job(task, count, helpers);
  run(job, helpers);
  if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace radconv::cpu
