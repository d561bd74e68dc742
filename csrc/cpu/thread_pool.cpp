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
#include <pthread.h>
#endif

namespace radconv::cpu {
namespace {

struct Job {
  const std::function<void(int64_t)>* task;
  int64_t count;
  std::atomic<int64_t> next{0};
  int helpers_wanted;  // guarded by Pool::mutex_, as the two below
  int helpers_inside = 0;
  std::exception_ptr failure;

  // Returns what a task threw, after which no further task starts.
  std::exception_ptr work() noexcept {
    try {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) (*task)(i);
      return nullptr;
    } catch (...) {
      next.store(count, std::memory_order_relaxed);
      return std::current_exception();
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
    const std::exception_ptr own = job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    // nobody may enter any more; those inside still use `job`, which lives on this stack
    jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end());
    left_.wait(lock, [&] { return job.helpers_inside == 0; });
    if (own) std::rethrow_exception(own);
    if (job.failure) std::rethrow_exception(job.failure);
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
      const std::exception_ptr failure = job->work();
      lock.lock();
      if (failure) job->failure = failure;
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
#if defined(__unix__) || defined(__APPLE__)
    static const int registered =
        pthread_atfork(nullptr, nullptr, [] { current.store(nullptr, std::memory_order_release); });
    (void)registered;
#endif
    Pool* made = new Pool;
    if (current.compare_exchange_strong(found, made)) return *made;
    delete made;
  }
  return *found;
}

}  // namespace

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& task) {
  const int helpers = static_cast<int>(std::min<int64_t>(threads, count)) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  Job job{&task, count, {}, helpers};
  pool().run(job, helpers);
}

}  // namespace radconv::cpu
