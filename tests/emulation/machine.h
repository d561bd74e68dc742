// The machine that runs kernels on the CPU. Blocks run one after the other; the threads of a block are fibers of the
// host thread that launched them. Whatever breaks the rules of the hardware ends the launch with an exception that says
// who did what.
//
// Environment, read at each launch:
//   RADCONV_EMULATION_ORDER  which thread goes on when one has to wait, and the order of the blocks: "forward" (lowest
//                            first, the default), "backward", or a number, the seed of a random order
//   RADCONV_EMULATION_RACES  "1": report accesses to shared memory that no barrier orders

#pragma once

#include <cstddef>
#include <cstdint>
#include <typeinfo>

#include "cuda_runtime_api.h"

namespace radconv::emulation {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;  // of a block
constexpr int kBarriers = 16;

// ---- what kernels see -----------------------------------------------------------------------------------------------

struct Index {  // launches have one dimension
  unsigned x;
};

extern __thread Index threadIdx, blockIdx, blockDim, gridDim;

// Shared memory of the block that this host thread runs.
struct SharedView {
  unsigned char* memory;  // null outside of a launch
  size_t bytes;
  bool watched;  // accesses are to be announced: races are logged, or copies are under way
};

extern __thread SharedView shared_view;

enum class Access : uint8_t { kLoad, kLoadMatrices, kStore, kCopy, kLanding };

// Ends the launch: the access is out of bounds or misaligned.
[[noreturn]] void bad_access(Access access, const void* at, size_t bytes, size_t alignment);

void watched_access(Access access, size_t offset, size_t bytes);

// The offset of an access by the running thread, after the checks.
inline size_t check_access(Access access, const void* at, size_t bytes, size_t alignment) {
  const SharedView& view = shared_view;
  const size_t offset = reinterpret_cast<uintptr_t>(at) - reinterpret_cast<uintptr_t>(view.memory);
  if (__builtin_expect(offset > view.bytes || bytes > view.bytes - offset || offset % alignment != 0, 0))
    bad_access(access, at, bytes, alignment);
  if (__builtin_expect(view.watched, 0)) watched_access(access, offset, bytes);
  return offset;
}

void copy_async(void* to, const void* from, int bytes, int size);
void commit_copies();
void wait_copies(int left);

enum class Wait : uint8_t { kNo, kYes, kReduce };

// True when a thread that took part with kReduce said so.
bool barrier(int id, int threads, Wait wait, bool flag = false);

// ---- operations of a whole warp -------------------------------------------------------------------------------------
// Every lane hands over its argument; the last one to arrive computes for all.

enum class Operation : uint8_t {
  kSyncWarp,
  kShuffle,
  kShuffleXor,
  kShuffleDown,
  kAny,
  kLoadMatrices,
  kLoadMatricesTransposed,
  kMultiplyFloat16,
  kMultiplyBFloat16,
  kMultiplyTF32,
};

struct Vote {
  bool flag;
};

struct Shuffle {
  uint64_t value;  // replaced
  int source;      // lane
};

struct MatrixRow {
  const void* row;
  uint32_t* words;  // [4]
};

struct Product {
  float* sums;        // [4]
  const uint32_t* a;  // [4]
  uint32_t b[2];
};

void collective(Operation operation, unsigned mask, void* argument);

// ---- launches -------------------------------------------------------------------------------------------------------

cudaError_t prepare(const void* kernel, int shared);

// `body` is called with `context` once for each thread.
cudaError_t launch(const void* kernel, const std::type_info& params, void (*body)(const void*), const void* context,
                   unsigned blocks, int threads, int shared);

}  // namespace radconv::emulation
