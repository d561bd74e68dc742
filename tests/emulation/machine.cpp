#undef _FORTIFY_SOURCE  // its longjmp takes the jump to another stack for an error

#include "machine.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/primitives.cuh"

#if defined(__SANITIZE_ADDRESS__)
#define RADCONV_ADDRESS_SANITIZER 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define RADCONV_ADDRESS_SANITIZER 0
#endif

namespace radconv::emulation {

__thread Index threadIdx, blockIdx, blockDim, gridDim;
__thread SharedView shared_view;

namespace {

constexpr int kWarps = kMaxThreads / kWarp;
constexpr size_t kStack =
    RADCONV_ADDRESS_SANITIZER ? 256 * 1024 : 128 * 1024;  // address space; pages come when touched
constexpr size_t kGuard = 4096;
constexpr int kSharedUnprepared = 48 * 1024;  // bytes that a kernel may have without prepare_kernel
constexpr uint32_t kAll = 0xffffffffu;

const char* name(Access access) {
  switch (access) {
    case Access::kLoad:
      return "load_shared";
    case Access::kLoadMatrices:
      return "load_matrices";
    case Access::kStore:
      return "store_shared";
    case Access::kCopy:
      return "copy_async";
    case Access::kLanding:
      return "the data of copy_async";
  }
  return "";
}

const char* name(Operation operation) {
  switch (operation) {
    case Operation::kSyncWarp:
      return "__syncwarp";
    case Operation::kShuffle:
      return "__shfl_sync";
    case Operation::kShuffleXor:
      return "__shfl_xor_sync";
    case Operation::kShuffleDown:
      return "__shfl_down_sync";
    case Operation::kAny:
      return "__any_sync";
    case Operation::kLoadMatrices:
      return "load_matrices";
    case Operation::kLoadMatricesTransposed:
      return "load_matrices_transposed";
    case Operation::kMultiplyFloat16:
      return "multiply of Float16";
    case Operation::kMultiplyBFloat16:
      return "multiply of BFloat16";
    case Operation::kMultiplyTF32:
      return "multiply of TF32";
  }
  return "";
}

const char* barrier_call(Wait wait) {
  switch (wait) {
    case Wait::kNo:
      return "barrier_arrive";
    case Wait::kYes:
      return "barrier_sync or __syncthreads";
    case Wait::kReduce:
      return "__syncthreads_or";
  }
  return "";
}

bool writes(Access access) { return access >= Access::kStore; }

std::string str(int64_t v) { return std::to_string(v); }

// "0-15, 31" for a mask of lanes.
std::string lanes(uint32_t mask) {
  std::string text;
  for (int i = 0; i < kWarp; ++i) {
    if (!(mask >> i & 1)) continue;
    int last = i;
    while (last + 1 < kWarp && (mask >> (last + 1) & 1)) ++last;
    text += (text.empty() ? "" : ", ") + str(i) + (last > i ? "-" + str(last) : "");
    i = last;
  }
  return text;
}

std::string demangled(const char* symbol) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(symbol, nullptr, nullptr, &status), std::free);
  return status == 0 ? text.get() : symbol;
}

// ---- fibers ---------------------------------------------------------------------------------------------------------

// A place to come back to. Without AddressSanitizer a switch makes no system call.
struct Place {
#if RADCONV_ADDRESS_SANITIZER
  ucontext_t context;
  void* fake_stack = nullptr;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
#else
  jmp_buf registers;
#endif
};

#if RADCONV_ADDRESS_SANITIZER
// `previous` learns the bounds of the stack that the switch came from.
void arrived(Place& here, Place* previous) {
  if (previous != nullptr)
    __sanitizer_finish_switch_fiber(here.fake_stack, &previous->stack, &previous->stack_bytes);
  else
    __sanitizer_finish_switch_fiber(here.fake_stack, nullptr, nullptr);
}

__attribute__((noinline)) void switch_places(Place& from, Place& to) {
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
  swapcontext(&from.context, &to.context);
  arrived(from, nullptr);
}
#else
__attribute__((noinline)) void switch_places(Place& from, Place& to) {
  if (_setjmp(from.registers) == 0) _longjmp(to.registers, 1);
}

__attribute__((noinline)) void start_place(Place& from, const ucontext_t& fresh) {
  if (_setjmp(from.registers) == 0) setcontext(&fresh);
}
#endif

// ---- race log -------------------------------------------------------------------------------------------------------
// Vector clocks. A thread's time goes on when it arrives at a barrier; what it knows of the others' times comes from
// the barriers that it waited for. An access is ordered after another thread's when that thread's time of then is
// known. All threads that waited for one barrier share what they know.

struct Clock {
  int holders;
  uint32_t time[kMaxThreads];
};

// What the threads that arrive at a barrier know together.
struct Gathering {
  Clock* sum = nullptr;
  Clock* seen[4] = {};  // already in the sum
  int seen_count = 0;
};

struct Epoch {
  uint32_t time = 0;  // 0: never
  uint16_t thread = 0;
  Access access = Access::kLoad;
};

// Of a word of shared memory, or of a byte once a part of its word was accessed alone.
struct Cell {
  Epoch write, read;   // the last write, and the reads since then: one here, or all in `reads`
  uint32_t reads = 0;  // 1 + index
  uint32_t bytes = 0;  // 1 + index
};

struct Reads {
  int count = 0;  // of `few`; -1: they are in `all`
  Epoch few[8];
  std::vector<uint32_t> all;  // by thread: 2 * time, + 1 for load_matrices
};

struct Race {
  Epoch first, second;
};

class RaceLog {
 public:
  void begin_block(int threads, size_t bytes) {
    threads_ = threads;
    cells_.assign((bytes + 3) / 4, Cell());
    parts_used_ = reads_used_ = 0;
    free_parts_.clear();
    free_reads_.clear();
    free_clocks_.clear();
    for (Clock& clock : clocks_) free_clocks_.push_back(&clock);
    Clock* none = take_clock();
    std::fill_n(none->time, threads, 0u);
    none->holders = threads;
    for (int i = 0; i < threads; ++i) {
      known_[i] = none;
      time_[i] = 1;
    }
  }

  void publish(Gathering& g, int thread) {
    Clock* known = known_[thread];
    if (g.sum == nullptr) {
      g.sum = take_clock();
      g.sum->holders = 1;
      std::copy_n(known->time, threads_, g.sum->time);
      see(g, known);
    } else if (std::find(g.seen, g.seen + g.seen_count, known) == g.seen + g.seen_count) {
      for (int i = 0; i < threads_; ++i) g.sum->time[i] = std::max(g.sum->time[i], known->time[i]);
      see(g, known);
    }
    g.sum->time[thread] = time_[thread]++;
  }

  void acquire(const Gathering& g, int thread) {
    ++g.sum->holders;
    release(known_[thread]);
    known_[thread] = g.sum;
  }

  void close(Gathering& g) {
    for (int i = 0; i < g.seen_count; ++i) release(g.seen[i]);
    if (g.sum != nullptr) release(g.sum);
    g = Gathering();
  }

  // False when there is a race.
  bool access(Access access, int thread, size_t offset, size_t bytes, Race* race) {
    const Epoch now{time_[thread], static_cast<uint16_t>(thread), access};
    const bool write = writes(access);
    for (const size_t end = offset + bytes; offset < end;) {
      Cell& cell = cells_[offset / 4];
      const size_t first = offset % 4, count = std::min(4 - first, end - offset);
      offset += count;
      if (count == 4 && cell.bytes == 0) {
        if (!touch(cell, now, write, race)) return false;
        continue;
      }
      if (cell.bytes == 0) split(cell);
      Cell* parts = parts_[cell.bytes - 1].cells;
      for (size_t i = first; i < first + count; ++i)
        if (!touch(parts[i], now, write, race)) return false;
      if (count == 4 && write) {  // the bytes have one history again
        free_parts_.push_back(cell.bytes);
        cell = Cell();
        cell.write = now;
      }
    }
    return true;
  }

 private:
  struct Parts {
    Cell cells[4];
  };

  Clock* take_clock() {
    if (free_clocks_.empty()) {
      clocks_.emplace_back();
      return &clocks_.back();
    }
    Clock* clock = free_clocks_.back();
    free_clocks_.pop_back();
    return clock;
  }

  void release(Clock* clock) {
    if (--clock->holders == 0) free_clocks_.push_back(clock);
  }

  void see(Gathering& g, Clock* known) {
    if (g.seen_count == 4) return;
    ++known->holders;  // so that its address can't mean another clock
    g.seen[g.seen_count++] = known;
  }

  bool ordered(const Epoch& before, const Epoch& now) const {
    return before.thread == now.thread || before.time <= known_[now.thread]->time[before.thread];
  }

  bool touch(Cell& cell, const Epoch& now, bool write, Race* race) {
    return write ? touch_write(cell, now, race) : touch_read(cell, now, race);
  }

  bool touch_write(Cell& cell, const Epoch& now, Race* race) {
    if (!ordered(cell.write, now)) return *race = {cell.write, now}, false;
    if (!ordered(cell.read, now)) return *race = {cell.read, now}, false;
    if (cell.reads != 0) {
      const Reads& reads = reads_[cell.reads - 1];
      for (int i = 0; i < reads.count; ++i)
        if (!ordered(reads.few[i], now)) return *race = {reads.few[i], now}, false;
      if (reads.count < 0)
        for (int i = 0; i < threads_; ++i) {
          const uint32_t time = reads.all[static_cast<size_t>(i)];
          const Epoch read{time / 2, static_cast<uint16_t>(i), time % 2 ? Access::kLoadMatrices : Access::kLoad};
          if (!ordered(read, now)) return *race = {read, now}, false;
        }
      free_reads_.push_back(cell.reads);
      cell.reads = 0;
    }
    cell.write = now;
    cell.read = Epoch();
    return true;
  }

  // A read that is ordered before this one need not be kept: whoever is ordered after this one is after both.
  bool touch_read(Cell& cell, const Epoch& now, Race* race) {
    if (cell.read.thread == now.thread && cell.read.time == now.time) return true;
    if (!ordered(cell.write, now)) return *race = {cell.write, now}, false;
    if (cell.reads == 0) {
      if (ordered(cell.read, now)) {
        cell.read = now;
        return true;
      }
      cell.reads = take_reads();
      Reads& reads = reads_[cell.reads - 1];
      reads.count = 2;
      reads.few[0] = cell.read;
      reads.few[1] = now;
      cell.read = Epoch();
      return true;
    }
    Reads& reads = reads_[cell.reads - 1];
    const uint32_t packed = now.time * 2 + (now.access == Access::kLoadMatrices);
    if (reads.count < 0) {
      reads.all[now.thread] = packed;
      return true;
    }
    Epoch* const end =
        std::remove_if(reads.few, reads.few + reads.count, [&](const Epoch& e) { return ordered(e, now); });
    reads.count = static_cast<int>(end - reads.few);
    if (reads.count < 8) {
      reads.few[reads.count++] = now;
      return true;
    }
    reads.all.assign(static_cast<size_t>(threads_), 0);
    for (const Epoch& e : reads.few) reads.all[e.thread] = e.time * 2 + (e.access == Access::kLoadMatrices);
    reads.all[now.thread] = packed;
    reads.count = -1;
    return true;
  }

  uint32_t take_reads() {
    if (!free_reads_.empty()) {
      const uint32_t index = free_reads_.back();
      free_reads_.pop_back();
      return index;
    }
    if (reads_used_ == reads_.size()) reads_.emplace_back();
    return static_cast<uint32_t>(++reads_used_);
  }

  void split(Cell& cell) {
    uint32_t index;
    if (!free_parts_.empty()) {
      index = free_parts_.back();
      free_parts_.pop_back();
    } else {
      if (parts_used_ == parts_.size()) parts_.emplace_back();
      index = static_cast<uint32_t>(++parts_used_);
    }
    for (Cell& part : parts_[index - 1].cells) {
      part = cell;
      if (cell.reads != 0) {
        part.reads = take_reads();
        reads_[part.reads - 1] = reads_[cell.reads - 1];
      }
    }
    if (cell.reads != 0) free_reads_.push_back(cell.reads);
    cell.reads = 0;
    cell.bytes = index;
  }

  int threads_ = 0;
  uint32_t time_[kMaxThreads];
  Clock* known_[kMaxThreads];
  std::deque<Clock> clocks_;
  std::vector<Clock*> free_clocks_;
  std::vector<Cell> cells_;
  std::deque<Parts> parts_;
  std::deque<Reads> reads_;
  size_t parts_used_ = 0, reads_used_ = 0;
  std::vector<uint32_t> free_parts_, free_reads_;
};

// ---- matrix instructions --------------------------------------------------------------------------------------------

using Row = float __attribute__((vector_size(32)));  // 8 columns

float low_float16(uint32_t word) { return cuda::Float16::unpack<0>(word); }
float high_float16(uint32_t word) { return cuda::Float16::unpack<1>(word); }
float low_bfloat16(uint32_t word) { return cuda::BFloat16::unpack<0>(word); }
float high_bfloat16(uint32_t word) { return cuda::BFloat16::unpack<1>(word); }
float tf32(uint32_t word) { return __uint_as_float(word & 0xffffe000u); }  // the hardware doesn't see the low bits

// Sums of exact products in float32, in the order of k.
template <int K>
void multiply(void* const (&arguments)[kWarp], const float (&a)[16][K], const Row (&b)[K]) {
  for (int row = 0; row < 16; ++row) {
    Row sum;
    const int lane = row % 8 * 4, i = row / 8 * 2;
    for (int column = 0; column < 8; ++column)
      sum[column] = static_cast<const Product*>(arguments[lane + column / 2])->sums[i + column % 2];
    for (int k = 0; k < K; ++k) sum += a[row][k] * b[k];
    for (int column = 0; column < 8; ++column)
      static_cast<const Product*>(arguments[lane + column / 2])->sums[i + column % 2] = sum[column];
  }
}

// mma.m16n8k16: a lane is (group, place) = (lane / 4, lane % 4). Word i of `a` holds row group (+ 8 for odd i), columns
// 2 place and 2 place + 1 (+ 8 for i >= 2); word i of `b` rows 2 place and 2 place + 1 (+ 8 for i = 1), column group.
template <float (*LOW)(uint32_t), float (*HIGH)(uint32_t)>
void multiply_halves(void* const (&arguments)[kWarp]) {
  float a[16][16];
  Row b[16];
  for (int lane = 0; lane < kWarp; ++lane) {
    const Product& p = *static_cast<const Product*>(arguments[lane]);
    const int group = lane / 4, place = lane % 4;
    for (int i = 0; i < 4; ++i) {
      a[group + i % 2 * 8][2 * place + i / 2 * 8] = LOW(p.a[i]);
      a[group + i % 2 * 8][2 * place + i / 2 * 8 + 1] = HIGH(p.a[i]);
    }
    for (int i = 0; i < 2; ++i) {
      b[2 * place + i * 8][group] = LOW(p.b[i]);
      b[2 * place + i * 8 + 1][group] = HIGH(p.b[i]);
    }
  }
  multiply(arguments, a, b);
}

// mma.m16n8k8: the same with one element in a word: word i of `a` is row group (+ 8 for odd i), column place (+ 4 for
// i >= 2); word i of `b` is row place (+ 4 for i = 1), column group.
void multiply_tf32(void* const (&arguments)[kWarp]) {
  float a[16][8];
  Row b[8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const Product& p = *static_cast<const Product*>(arguments[lane]);
    const int group = lane / 4, place = lane % 4;
    for (int i = 0; i < 4; ++i) a[group + i % 2 * 8][place + i / 2 * 4] = tf32(p.a[i]);
    for (int i = 0; i < 2; ++i) b[place + i * 4][group] = tf32(p.b[i]);
  }
  multiply(arguments, a, b);
}

void load_matrices(void* const (&arguments)[kWarp]) {
  uint32_t rows[kWarp][4];
  for (int lane = 0; lane < kWarp; ++lane)
    std::memcpy(rows[lane], static_cast<const MatrixRow*>(arguments[lane])->row, 16);
  for (int lane = 0; lane < kWarp; ++lane)
    for (int i = 0; i < 4; ++i)
      static_cast<const MatrixRow*>(arguments[lane])->words[i] = rows[i * 8 + lane / 4][lane % 4];
}

void load_matrices_transposed(void* const (&arguments)[kWarp]) {
  uint16_t rows[kWarp][8];
  for (int lane = 0; lane < kWarp; ++lane)
    std::memcpy(rows[lane], static_cast<const MatrixRow*>(arguments[lane])->row, 16);
  for (int lane = 0; lane < kWarp; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = i * 8 + lane % 4 * 2;
      static_cast<const MatrixRow*>(arguments[lane])->words[i] = rows[row][lane / 4] | uint32_t{rows[row + 1][lane / 4]}
                                                                                           << 16;
    }
}

// ---- the machine ----------------------------------------------------------------------------------------------------

struct Copy {
  size_t offset;
  const void* from;
  int bytes, size, group;
};

struct Fiber {
  Place place;
  bool started = false;
  std::vector<Copy> copies;  // those before `landed` are done
  size_t landed = 0;
  int committed = 0;  // groups
};

struct Warp {
  uint32_t finished;
  uint32_t waiting;  // lanes, for a barrier
  int barrier;       // that they wait for
  uint32_t arrived;  // lanes, at an operation of the whole warp
  Operation operation;
  void* arguments[kWarp];
};

struct Barrier {
  int expected, arrived;
  Wait wait;  // how the first one to wait did
  bool has_waiting;
  bool flag, result;  // gathered; of the last generation
  uint32_t present[kWarps], waiting[kWarps];
  Gathering clocks;
};

enum class Order { kForward, kBackward, kRandom };

class Machine {
 public:
  Machine() : fibers_(kMaxThreads) {
    stacks_ = static_cast<unsigned char*>(mmap(nullptr, kMaxThreads * (kGuard + kStack), PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks_ == MAP_FAILED) throw std::bad_alloc();
  }

  ~Machine() {
#if RADCONV_ADDRESS_SANITIZER
    ASAN_UNPOISON_MEMORY_REGION(stacks_, kMaxThreads * (kGuard + kStack));  // whoever is given these pages next
#endif
    munmap(stacks_, kMaxThreads * (kGuard + kStack));
    std::free(memory_);
  }

  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  bool running() const { return body_ != nullptr; }

  void launch(const void* kernel, const std::type_info& params, void (*body)(const void*), const void* context,
              unsigned blocks, int threads, int shared) {
    read_environment();
    make_shared_memory(static_cast<size_t>(shared));
    struct Session {  // whatever happens, the next launch finds the machine idle
      Machine& m;
      ~Session() {
        m.body_ = nullptr;
        shared_view = {nullptr, 0, false};
      }
    } session{*this};
    kernel_ = kernel;
    params_ = &params;
    context_ = context;
    body_ = body;
    threads_ = threads;
    blockDim.x = static_cast<unsigned>(threads);
    gridDim.x = blocks;
    shared_view.memory = memory_;
    shared_view.bytes = static_cast<size_t>(shared);

    std::vector<unsigned> order;
    if (order_ == Order::kRandom) {
      for (unsigned i = 0; i < blocks; ++i) order.push_back(i);
      for (unsigned i = blocks; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
    }
    for (unsigned i = 0; i < blocks; ++i) {
      blockIdx.x = order_ == Order::kRandom ? order[i] : order_ == Order::kBackward ? blocks - 1 - i : i;
      run_block();
      if (error_ == nullptr) continue;
      for (Fiber& fiber : fibers_) {  // abandoned in the middle of the kernel
        fiber.started = false;
        fiber.copies.clear();
      }
      std::fill(owner_.begin(), owner_.end(), uint16_t{0});
      ready_warps_ = 0;
      std::exception_ptr error;
      std::swap(error, error_);
      std::rethrow_exception(error);
    }
  }

  [[noreturn]] void fail(const std::string& what) const { throw std::runtime_error(report(what)); }

  // -- shared memory --

  [[noreturn]] void bad_access(Access access, const void* at, size_t bytes, size_t alignment) const {
    const int64_t offset = static_cast<int64_t>(reinterpret_cast<uintptr_t>(at)) -
                           static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory_));
    const int64_t size = static_cast<int64_t>(shared_view.bytes);
    const bool outside = offset < 0 || offset + static_cast<int64_t>(bytes) > size;
    std::string what = std::string(name(access)) + ": expected ";
    if (outside)
      what += str(static_cast<int64_t>(bytes)) + " bytes within the " + str(size) + " of shared memory";
    else
      what += "an offset aligned to " + str(static_cast<int64_t>(alignment));
    fail(what + ", got offset " + str(offset) + (outside ? " (out of bounds)" : " (misaligned)"));
  }

  void watched_access(Access access, size_t offset, size_t bytes) {
    if (copies_under_way_ > 0 && (writes(access) || races_))
      for (size_t word = offset / 4; word <= (offset + bytes - 1) / 4; ++word)
        if (owner_[word] != 0)
          fail(std::string(name(access)) + " " + (writes(access) ? "overwrites" : "reads") + " shared bytes " +
               range(offset, bytes) + ": expected that no copy is under way to them, got one that thread " +
               str(owner_[word] - 1) + " has issued and not waited for");
    if (races_) log(access, offset, bytes);
  }

  void copy_async(void* to, const void* from, int bytes, int size) {
    const size_t length = static_cast<size_t>(size);
    const size_t offset = check_access(Access::kCopy, to, length, length);
    if (bytes < 0 || bytes > size) fail("copy_async: expected 0 to " + str(size) + " bytes, got " + str(bytes));
    if (bytes > 0) {
      if (from == nullptr) fail("copy_async: expected a source for " + str(bytes) + " bytes, got null");
      if (reinterpret_cast<uintptr_t>(from) % length != 0)
        fail("copy_async: expected a source aligned to " + str(size) + " bytes, got an address that is " +
             str(static_cast<int64_t>(reinterpret_cast<uintptr_t>(from) % length)) + " past that (misaligned)");
#if RADCONV_ADDRESS_SANITIZER
      unsigned char scratch[16];  // read in vain, so that a report of a bad source comes from here
      std::memcpy(scratch, from, static_cast<size_t>(bytes));
      asm volatile("" ::"r"(scratch) : "memory");
#endif
    }
    std::memset(to, 0xff, length);
    for (size_t word = offset / 4; word < (offset + length) / 4; ++word) owner_[word] = static_cast<uint16_t>(me() + 1);
    fibers_[me()].copies.push_back({offset, from, bytes, size, fibers_[me()].committed});
    ++copies_under_way_;
    shared_view.watched = true;
  }

  void commit_copies() { ++fibers_[me()].committed; }

  void wait_copies(int left) {
    Fiber& fiber = fibers_[me()];
    const int groups = fiber.committed - left;  // the first ones
    while (fiber.landed < fiber.copies.size() && fiber.copies[fiber.landed].group < groups) {
      const Copy& copy = fiber.copies[fiber.landed++];
      const size_t words = static_cast<size_t>(copy.size) / 4, bytes = static_cast<size_t>(copy.bytes);
      std::fill_n(owner_.begin() + static_cast<std::ptrdiff_t>(copy.offset / 4), words, uint16_t{0});
      --copies_under_way_;
      if (races_) log(Access::kLanding, copy.offset, static_cast<size_t>(copy.size));
      if (bytes > 0) std::memcpy(memory_ + copy.offset, copy.from, bytes);
      std::memset(memory_ + copy.offset + bytes, 0, static_cast<size_t>(copy.size) - bytes);
    }
    if (fiber.landed == fiber.copies.size()) {
      fiber.copies.clear();
      fiber.landed = 0;
    }
    if (!races_) shared_view.watched = copies_under_way_ > 0;
  }

  // -- barriers --

  bool barrier(int id, int threads, Wait wait, bool flag) {
    if (id < 0 || id >= kBarriers) fail("barrier: expected an id from 0 to 15, got " + str(id));
    const std::string_view call = barrier_call(wait);
    Barrier& b = barriers_[id];
    Warp& warp = warps_[me() / kWarp];
    const uint32_t bit = 1u << me() % kWarp;
    if (threads <= 0 || threads > threads_ || threads % kWarp != 0)
      fail("barrier " + str(id) + ": expected a multiple of 32 up to the block's " + str(threads_) + " threads, got " +
           str(threads));
    if (b.arrived == 0)
      b.expected = threads;
    else if (b.expected != threads)
      fail("barrier " + str(id) + ": expected the " + str(b.expected) + " threads that those who are here gave, got " +
           str(threads) + " (count mismatch)");
    if (b.present[me() / kWarp] & bit)
      fail("barrier " + str(id) + ": expected every thread once, got " + std::string(call) +
           " again before the barrier was complete (arrived twice)");
    if (wait != Wait::kNo) {  // an arrival alone may leave the other lanes behind
      if (warp.arrived != 0)
        fail("barrier " + str(id) + ": expected the whole warp, got lanes " + lanes(warp.arrived) +
             " of it waiting in " + name(warp.operation) + " (diverged)");
      if (warp.waiting != 0 && warp.barrier != id)
        fail("barrier " + str(id) + ": expected the whole warp, got lanes " + lanes(warp.waiting) +
             " of it waiting for barrier " + str(warp.barrier) + " (diverged)");
      if (b.has_waiting && b.wait != wait)
        fail("barrier " + str(id) + ": expected " + barrier_call(b.wait) + " as from those who are here, got " +
             std::string(call));
      b.has_waiting = true;
      b.wait = wait;
    }
    b.present[me() / kWarp] |= bit;
    b.flag |= flag;
    ++b.arrived;
    if (races_) races_log_.publish(b.clocks, me());
    if (wait != Wait::kNo) b.waiting[me() / kWarp] |= bit;
    if (b.arrived == b.expected) {
      complete(id);
    } else if (wait != Wait::kNo) {
      warp.waiting |= bit;
      warp.barrier = id;
      block();
    }
    return b.result;
  }

  // -- operations of a whole warp --

  void collective(Operation operation, unsigned mask, void* argument) {
    Warp& warp = warps_[me() / kWarp];
    const int lane = me() % kWarp;
    if (mask != kAll) fail(std::string(name(operation)) + ": expected all lanes in the mask, got lanes " + lanes(mask));
    const char* reason = nullptr;
    if (warp.finished != 0) reason = "the end of the kernel", mask = warp.finished;
    if (warp.waiting != 0) reason = "a barrier", mask = warp.waiting;
    if (warp.arrived != 0 && warp.operation != operation) reason = name(warp.operation), mask = warp.arrived;
    if (reason != nullptr)
      fail(std::string(name(operation)) + ": expected the whole warp, got lanes " + lanes(mask) + " of it at " +
           reason + " (diverged)");
    warp.operation = operation;
    warp.arguments[lane] = argument;
    warp.arrived |= 1u << lane;
    if (warp.arrived != kAll) {
      block();
      return;
    }
    warp.arrived = 0;
    compute(warp, me() - lane);
    make_ready(me() / kWarp, kAll);
  }

  void run_fiber() {
    for (;;) {
      try {
        body_(context_);
        retire();
      } catch (...) {
        error_ = std::current_exception();
      }
      leave();
    }
  }

 private:
  int me() const { return static_cast<int>(threadIdx.x); }

  // -- launches --

  void read_environment() {
    const char* order = std::getenv("RADCONV_EMULATION_ORDER");
    if (order == nullptr || *order == '\0' || std::strcmp(order, "forward") == 0) {
      order_ = Order::kForward;
    } else if (std::strcmp(order, "backward") == 0) {
      order_ = Order::kBackward;
    } else {
      char* end = nullptr;
      seed_ = std::strtoull(order, &end, 10) * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du;
      if (*end != '\0')
        throw std::runtime_error(std::string("RADCONV_EMULATION_ORDER: expected forward, backward or a number, got '") +
                                 order + "'");
      if (seed_ == 0) seed_ = 1;
      order_ = Order::kRandom;
    }
    const char* races = std::getenv("RADCONV_EMULATION_RACES");
    races_ = races != nullptr && std::strcmp(races, "1") == 0;
  }

  void make_shared_memory(size_t bytes) {
    if (memory_ != nullptr && memory_bytes_ == bytes) return;
    std::free(memory_);
    memory_ = nullptr;
    void* memory = nullptr;
    // of the exact size, so that AddressSanitizer's redzone begins at the end
    if (posix_memalign(&memory, 128, std::max<size_t>(bytes, 1)) != 0) throw std::bad_alloc();
    memory_ = static_cast<unsigned char*>(memory);
    memory_bytes_ = bytes;
    owner_.assign((bytes + 3) / 4, 0);
  }

  void run_block() {
    std::memset(memory_, 0xff, memory_bytes_);
    for (int i = 0; i < threads_ / kWarp; ++i) {
      warps_[i] = Warp();
      make_ready(i, kAll);
    }
    for (Barrier& b : barriers_) b = Barrier();
    for (int i = 0; i < threads_; ++i) fibers_[static_cast<size_t>(i)].committed = 0;
    if (races_) races_log_.begin_block(threads_, memory_bytes_);
    copies_under_way_ = 0;
    shared_view.watched = races_;
    unfinished_ = threads_;
    enter(main_, next());
  }

  // -- scheduling --

  uint64_t random() {
    seed_ ^= seed_ << 13;
    seed_ ^= seed_ >> 7;
    seed_ ^= seed_ << 17;
    return seed_ * 0x2545f4914f6cdd1du >> 33;
  }

  // One of the bits that are set, each as likely as the gap before it is long.
  int random_bit(uint32_t mask) {
    const int turn = static_cast<int>(random() % 32);
    const uint32_t turned = turn == 0 ? mask : mask >> turn | mask << (32 - turn);
    return (__builtin_ctz(turned) + turn) % 32;
  }

  void make_ready(int warp, uint32_t lanes) {
    ready_[warp] |= lanes;
    if (lanes != 0) ready_warps_ |= 1u << warp;
  }

  void unready(int thread) {
    const int warp = thread / kWarp;
    ready_[warp] &= ~(1u << thread % kWarp);
    if (ready_[warp] == 0) ready_warps_ &= ~(1u << warp);
  }

  // A thread that can go on, or -1.
  int next() {
    if (ready_warps_ == 0) return -1;
    if (order_ == Order::kForward) {
      const int warp = __builtin_ctz(ready_warps_);
      return warp * kWarp + __builtin_ctz(ready_[warp]);
    }
    if (order_ == Order::kBackward) {
      const int warp = 31 - __builtin_clz(ready_warps_);
      return warp * kWarp + 31 - __builtin_clz(ready_[warp]);
    }
    const int warp = random_bit(ready_warps_);
    return warp * kWarp + random_bit(ready_[warp]);
  }

  // The running thread has to wait.
  void block() {
    const int from = me();
    unready(from);
    const int to = next();
    if (to < 0) fail(deadlock());
    enter(fibers_[static_cast<size_t>(from)].place, to);
  }

  void enter(Place& from, int to) {
    threadIdx.x = static_cast<unsigned>(to);
    Fiber& fiber = fibers_[static_cast<size_t>(to)];
    if (__builtin_expect(fiber.started, 1))
      switch_places(from, fiber.place);
    else
      start(from, to);
  }

  // A fiber outlives its thread: it waits in leave() for the next block's.
  void start(Place& from, int to) {
    Fiber& fiber = fibers_[static_cast<size_t>(to)];
    unsigned char* const stack = stacks_ + static_cast<size_t>(to) * (kGuard + kStack);
    if (mprotect(stack, kGuard, PROT_NONE) != 0) throw std::bad_alloc();
    // stacks that begin at equal offsets in their pages would compete for the same few cache lines
    const size_t bytes = kStack - static_cast<size_t>(to) % 64 * 64;
    fiber.started = true;
#if RADCONV_ADDRESS_SANITIZER
    ASAN_UNPOISON_MEMORY_REGION(stack + kGuard, kStack);  // an abandoned fiber left its frames' redzones
    ucontext_t& fresh = fiber.place.context;
    fiber.place.fake_stack = nullptr;
    fiber.place.stack = stack + kGuard;
    fiber.place.stack_bytes = bytes;
#else
    ucontext_t fresh;
#endif
    getcontext(&fresh);
    fresh.uc_stack.ss_sp = stack + kGuard;
    fresh.uc_stack.ss_size = bytes;
    fresh.uc_link = nullptr;
    makecontext(&fresh, fiber_entry, 0);
#if RADCONV_ADDRESS_SANITIZER
    fresh.uc_stack.ss_size = 0;  // or each switch would clear the redzones of the whole stack
    came_from_ = &from;
    switch_places(from, fiber.place);
#else
    start_place(from, fresh);
#endif
  }

  static void fiber_entry();

  void retire() {
    const Fiber& fiber = fibers_[me()];
    if (fiber.landed < fiber.copies.size())
      fail("end of the kernel: expected no copy under way, got " +
           str(static_cast<int64_t>(fiber.copies.size() - fiber.landed)) + " that this thread has not waited for" +
           (fiber.copies.back().group == fiber.committed ? ", uncommitted ones among them" : ""));
    Warp& warp = warps_[me() / kWarp];
    if (warp.arrived != 0)
      fail("end of the kernel: expected the whole warp, got lanes " + lanes(warp.arrived) + " of it waiting in " +
           name(warp.operation) + " (diverged)");
    warp.finished |= 1u << me() % kWarp;
    unready(me());
    if (--unfinished_ > 0 && next() < 0) fail(deadlock());
  }

  void leave() {
    Place& from = fibers_[me()].place;
    if (error_ == nullptr && unfinished_ > 0)
      enter(from, next());
    else
      switch_places(from, main_);
  }

  // -- reports --

  std::string kernel_name() const {
    Dl_info info;
    if (dladdr(kernel_, &info) != 0 && info.dli_sname != nullptr && info.dli_saddr == kernel_)
      return demangled(info.dli_sname);
    return "kernel(" + demangled(params_->name()) + ")";
  }

  std::string report(const std::string& what) const {
    return what + "; in block " + str(blockIdx.x) + " of " + str(gridDim.x) + ", thread " + str(threadIdx.x) + " of " +
           str(blockDim.x) + ", of " + kernel_name();
  }

  static std::string range(size_t offset, size_t bytes) {
    return "[" + str(static_cast<int64_t>(offset)) + ", " + str(static_cast<int64_t>(offset + bytes)) + ")";
  }

  std::string deadlock() const {
    std::string text;
    for (int id = 0; id < kBarriers; ++id)
      if (barriers_[id].arrived > 0)
        text += ", barrier " + str(id) + " has " + str(barriers_[id].arrived) + " arrivals of " +
                str(barriers_[id].expected);
    for (int i = 0; i < threads_ / kWarp; ++i)
      if (warps_[i].arrived != 0)
        text += ", lanes " + lanes(warps_[i].arrived) + " of warp " + str(i) + " wait in " + name(warps_[i].operation);
    return "deadlock: expected a thread that can go on, got " + str(threads_ - unfinished_) + " finished" + text;
  }

  void log(Access access, size_t offset, size_t bytes) {
    Race race;
    if (races_log_.access(access, me(), offset, bytes, &race)) return;
    fail("race: expected a barrier between accesses to shared bytes " + range(offset, bytes) + ", got none between " +
         name(race.first.access) + " of thread " + str(race.first.thread) + " and " + name(race.second.access) +
         " of thread " + str(race.second.thread));
  }

  // -- completion --

  void complete(int id) {
    Barrier& b = barriers_[id];
    for (int i = 0; i < threads_ / kWarp; ++i) {
      if (b.present[i] != 0 && b.present[i] != kAll)
        fail("barrier " + str(id) + ": expected whole warps, got only lanes " + lanes(b.present[i]) + " of warp " +
             str(i) + " (diverged)");
      make_ready(i, b.waiting[i]);
      warps_[i].waiting &= ~b.waiting[i];
    }
    if (races_) {
      for (int i = 0; i < threads_; ++i)
        if (b.waiting[i / kWarp] >> i % kWarp & 1) races_log_.acquire(b.clocks, i);
      races_log_.close(b.clocks);
    }
    const bool result = b.flag;
    b = Barrier();
    b.result = result;
  }

  void compute(Warp& warp, int first) {
    auto& arguments = warp.arguments;
    switch (warp.operation) {
      case Operation::kSyncWarp:
        if (races_) {
          Gathering g;
          for (int i = 0; i < kWarp; ++i) races_log_.publish(g, first + i);
          for (int i = 0; i < kWarp; ++i) races_log_.acquire(g, first + i);
          races_log_.close(g);
        }
        return;
      case Operation::kShuffle:
      case Operation::kShuffleXor:
      case Operation::kShuffleDown: {
        uint64_t values[kWarp];
        for (int i = 0; i < kWarp; ++i) values[i] = static_cast<const Shuffle*>(arguments[i])->value;
        for (int i = 0; i < kWarp; ++i) {
          Shuffle& s = *static_cast<Shuffle*>(arguments[i]);
          s.value = values[s.source];
        }
        return;
      }
      case Operation::kAny: {
        bool any = false;
        for (int i = 0; i < kWarp; ++i) any |= static_cast<const Vote*>(arguments[i])->flag;
        for (int i = 0; i < kWarp; ++i) static_cast<Vote*>(arguments[i])->flag = any;
        return;
      }
      case Operation::kLoadMatrices:
        return load_matrices(arguments);
      case Operation::kLoadMatricesTransposed:
        return load_matrices_transposed(arguments);
      case Operation::kMultiplyFloat16:
        return multiply_halves<low_float16, high_float16>(arguments);
      case Operation::kMultiplyBFloat16:
        return multiply_halves<low_bfloat16, high_bfloat16>(arguments);
      case Operation::kMultiplyTF32:
        return multiply_tf32(arguments);
    }
  }

  // of the launch
  const void* kernel_ = nullptr;
  const std::type_info* params_ = nullptr;
  void (*body_)(const void*) = nullptr;
  const void* context_ = nullptr;
  int threads_ = 0;
  Order order_ = Order::kForward;
  uint64_t seed_ = 1;
  bool races_ = false;

  // of the block
  uint32_t ready_[kWarps] = {};  // lanes that can go on; the running one is among them
  uint32_t ready_warps_ = 0;     // with such lanes
  Warp warps_[kWarps];
  Barrier barriers_[kBarriers];
  int unfinished_ = 0;
  int copies_under_way_ = 0;
  std::vector<uint16_t> owner_;  // of each word: 1 + the thread that has a copy to it under way, or 0
  RaceLog races_log_;
  std::exception_ptr error_;

  unsigned char* memory_ = nullptr;
  size_t memory_bytes_ = 0;
  Place main_;
  std::vector<Fiber> fibers_;
  unsigned char* stacks_ = nullptr;
#if RADCONV_ADDRESS_SANITIZER
  Place* came_from_ = nullptr;  // when a fiber starts
#endif
};

Machine& machine() {
  static thread_local const std::unique_ptr<Machine> machine = std::make_unique<Machine>();
  return *machine;
}

// Runs on the host thread's machine; set while a kernel runs.
__thread Machine* running_machine;

Machine& running(const char* call) {
  if (running_machine == nullptr) throw std::logic_error(std::string(call) + " outside of a kernel");
  return *running_machine;
}

void Machine::fiber_entry() {
#if RADCONV_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(nullptr, &running_machine->came_from_->stack,
                                  &running_machine->came_from_->stack_bytes);
#endif
  running_machine->run_fiber();
}

struct Prepared {
  std::mutex mutex;
  std::map<const void*, int> shared;
};

Prepared& prepared() {
  static Prepared all;
  return all;
}

cudaError_t refused(cudaError_t error) {
  host_state().last_error = error;
  return error;
}

}  // namespace

void bad_access(Access access, const void* at, size_t bytes, size_t alignment) {
  running(name(access)).bad_access(access, at, bytes, alignment);
}

void watched_access(Access access, size_t offset, size_t bytes) {
  running_machine->watched_access(access, offset, bytes);
}

void copy_async(void* to, const void* from, int bytes, int size) {
  running("copy_async").copy_async(to, from, bytes, size);
}

void commit_copies() { running("commit_copies").commit_copies(); }

void wait_copies(int left) { running("wait_copies").wait_copies(left); }

bool barrier(int id, int threads, Wait wait, bool flag) { return running("barrier").barrier(id, threads, wait, flag); }

void collective(Operation operation, unsigned mask, void* argument) {
  running(name(operation)).collective(operation, mask, argument);
}

cudaError_t prepare(const void* kernel, int shared) {
  if (shared < 0 || shared > kMaxShared) return refused(cudaErrorInvalidValue);
  const std::lock_guard<std::mutex> lock(prepared().mutex);
  prepared().shared[kernel] = shared;
  return cudaSuccess;
}

cudaError_t launch(const void* kernel, const std::type_info& params, void (*body)(const void*), const void* context,
                   unsigned blocks, int threads, int shared) {
  if (running_machine != nullptr) throw std::logic_error("launch_kernel inside of a kernel");
  if (blocks == 0 || blocks > 0x7fffffffu || threads <= 0 || threads > kMaxThreads || threads % kWarp != 0)
    return refused(cudaErrorInvalidConfiguration);
  if (shared < 0) return refused(cudaErrorInvalidValue);
  {
    const std::lock_guard<std::mutex> lock(prepared().mutex);
    const auto found = prepared().shared.find(kernel);
    const int most = found == prepared().shared.end() ? kSharedUnprepared : found->second;
    if (shared > most) return refused(cudaErrorInvalidValue);
  }
  struct Running {
    Running() { running_machine = &machine(); }
    ~Running() { running_machine = nullptr; }
  } running;
  running_machine->launch(kernel, params, body, context, blocks, threads, shared);
  return cudaSuccess;
}

}  // namespace radconv::emulation
