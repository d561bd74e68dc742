// What one launch of the fused convolution is told: sizes, addresses, and where things lie in shared memory.
// Plain C++: the planner fills it in, the kernel reads it.

#pragma once

#include <cstdint>

#include "radconv.h"

namespace radconv::cuda {

// A block computes kPixels output pixels by up to 128 output channels.  Its first four warps multiply, two groups of
// four warps gather rings, each for every other step.
constexpr int kPixels = 128;
constexpr int kGroupThreads = 128;
constexpr int kThreads = 3 * kGroupThreads;
constexpr int kTileHeight = 8, kTileWidth = 16;  // of kernels whose size is known at compile time
constexpr int kWords = 8;                        // of one pixel in a chunk of channels: 16 halves or 8 floats
constexpr int kPixelBytes = 4 * kWords;
constexpr int kMostOutputs = 128;          // of a block
constexpr int kTableFunctions = 4;         // that kernels of any size make at a time
constexpr unsigned kOutside = UINT32_MAX;  // place of a pixel that is zero
constexpr int kStagePitch = 68;  // floats of one pixel's outputs on their way out: 64, and some against bank conflicts
constexpr int kPlaceBytes = 64;
constexpr int kStageBytes = 64 * 4 * kStagePitch;  // of one warp

// Places that a pixel takes for this many functions: never a multiple of four, which would share banks.
constexpr int ring_pitch(int functions) { return functions % 4 == 0 ? functions + 1 : functions; }
constexpr int ring_bytes(int functions) { return kPixels * ring_pitch(functions) * kPixelBytes; }

// How channels of a pixel come into shared memory.
enum class Loader : int {
  kVector,  // 16 bytes at a time
  kWord,    // 4 bytes at a time
  kScalar,  // one element at a time: half types in contiguous layout, or at odd addresses
};

struct ConvParams {
  const void* x;
  void* y;
  const void* bias;                // (O) or null
  const unsigned char* workspace;  // of the preparation: basis at 0, weights at `weights`
  const int* tables;               // on the device, see Tables
  int64_t x_strides[5], y_strides[5];

  // An axis' outputs fall into classes: output `classes * j + r` meets the taps from input `origin[r] + step * stride *
  // j` on, at every `step`-th position.
  int in_size[3], out_size[3], classes[3], step[3], stride[3];
  int tile[3], tiles[3], halo[3];
  bool wrap;
  int item;  // bytes of an element

  int channels, outputs, groups;  // the first two of one group
  int passes, per_pass;           // functions of the basis: `passes` times up to `per_pass`
  int steps;                      // chunks of channels times passes
  int out_blocks, block_outputs;  // outputs of a block, a multiple of 16
  int64_t weights;                // bytes into the workspace
  int basis_pitch;                // floats from one shell to the next
  int shells;

  // Tables: ints from these places on
  int origins[3];      // one per class
  int starts, taps;    // of each class' shells in the taps; bytes in the halo.  Kernels of any size only
  int tap_classes[3];  // classes that have tables of their own, else 1

  // Shared memory: bytes from these places on
  int halo_bytes, halo_buffers, ring_at, weight_at, weight_bytes, weight_buffers, basis_at, gather_at, pixel_at,
      place_at;

  Loader loader;
  DType bias_type;
};

}  // namespace radconv::cuda
