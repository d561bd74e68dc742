// What one launch of the fused convolution is told: sizes, addresses, and where things lie in shared memory.
// Plain C++: the planner fills it in, the kernel reads it.

#pragma once

#include <cstdint>

#include "cuda/geometry.h"

namespace radconv::cuda {

// A block computes kPixels output pixels by up to 128 output channels.  Its first four warps multiply, two groups of
// four warps gather rings, each for every other step.
constexpr int kPixels = 128;
constexpr int kThreads = 3 * kGroupThreads;
constexpr int kTableFunctions = 4;  // that kernels of any size make at a time
constexpr int kStagePitch = 68;  // floats of one pixel's outputs on their way out: 64, and some against bank conflicts
constexpr int kStageBytes = 64 * 4 * kStagePitch;  // of one warp

// Places that a pixel takes for this many functions: never a multiple of four, which would share banks.
constexpr int ring_pitch(int functions) { return functions % 4 == 0 ? functions + 1 : functions; }
constexpr int ring_bytes(int functions) { return kPixels * ring_pitch(functions) * kPixelBytes; }

struct ConvParams : Geometry {
  void* y;
  const void* bias;                // (O) or null
  const unsigned char* workspace;  // of the preparation: basis at 0, weights at `weights`
  int64_t y_strides[5];
  int plane;  // pixels of the halo that are loaded at a time: one plane of it, or, in kernels of any size, all

  int outputs;                    // of one group
  int passes, per_pass;           // functions of the basis: `passes` times up to `per_pass`
  int steps;                      // chunks of channels times passes
  int out_blocks, block_outputs;  // outputs of a block, a multiple of 16
  int64_t weights;                // bytes into the workspace
  int basis_pitch;                // floats from one shell to the next

  // Shared memory: bytes from these places on
  int halo_bytes, halo_buffers, ring_at, weight_at, weight_bytes, weight_buffers, basis_at, gather_at, pixel_at,
      place_at;

  DType bias_type;
  bool wide_stores;  // outputs are neighbours, eight of them at a time at addresses to match
};

}  // namespace radconv::cuda
