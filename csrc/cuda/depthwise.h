// What the launches of the depthwise convolution are told: folding, forward, weight gradient.  Plain C++.
//
// To their geometry all channels are one group.

#pragma once

#include <cstdint>

#include "cuda/geometry.h"
#include "cuda/profile_params.h"

namespace radconv::cuda {

constexpr int kMostFoldShared = 48 * 1024;  // that every block has without asking

constexpr int kFoldThreads = 256;
constexpr int kGradientSpots = 3;     // the tile at hand, the one whose halo is under way, the one after it
constexpr int kSpotBytes = 128;       // of what a block works on
constexpr int kSlots = kTileWidth;    // threads of a block that have the same channels
constexpr int kSlotPixels = 8;        // of a thread, in kernels of any size
constexpr int kMostBlockShells = 64;  // that a block of the weight gradient of any size sums
constexpr int kPixelPlaceBytes = 16;  // of a pixel of the tile, in kernels of any size
constexpr int kDepthwiseWarps = kGroupThreads / 32;

// Blocks that a multiprocessor's registers hold: what the kernels are compiled for and the planner counts on.  `half`:
// of two channels a thread, each of which takes registers.
constexpr int forward_residents(int k, int depth, bool half) {
  if (k == 0) return 4;
  if (!half) return depth == 1 ? (k <= 5 ? 8 : k <= 7 ? 6 : k <= 9 ? 5 : 4) : k == 3 ? 6 : 4;
  if (depth == 1) return k <= 5 ? 6 : k <= 7 ? 5 : k <= 9 ? 4 : 3;
  return k <= 3 ? 4 : k <= 5 ? 3 : 2;
}
constexpr int gradient_residents(int k, int depth, bool half) {
  if (k == 0 || !half) return k == 3 && depth == 1 ? 6 : 4;
  if (depth == 1) return k <= 3 ? 6 : k <= 7 ? 4 : k <= 9 ? 3 : 2;
  return k <= 3 ? 4 : k <= 5 ? 3 : 2;
}

// Rows of a column at a time: more of them are more independent sums, and take more registers.
constexpr int depthwise_rows(int k, int depth) { return depth == 1 && k <= 7 ? 2 : 1; }

// A tensor of the output's size.
struct OutputLayout {
  int64_t strides[5];  // bytes
  bool words;          // neighbouring channels can be read and written 4 bytes at a time
};

struct DepthwiseGeometry : Geometry {
  OutputLayout out;
  int plane;   // pixels of the halo that are loaded at a time: one plane of it, or, in kernels of any size, all
  int chunks;  // of channels

  // Shared memory: bytes from these places on, the buffers from 0
  int buffer_bytes, buffers, gather_at, pixel_at, spot_at;
};

struct DepthwiseParams : DepthwiseGeometry {
  void* y;
  const unsigned char* values;  // (chunks, shells + 1, channels of a chunk) floats: w P of the shells, then the bias

  int value_bytes, values_at;      // of one chunk, and their place in a buffer; kernels of any size read them in place
  int block_chunks, chunk_blocks;  // of a block, and blocks to do them all
};

struct DepthwiseGradientParams : DepthwiseGeometry {
  const void* grad;
  unsigned char* workspace;

  // Workspace: bytes to float sums (splits, channels, shells) and (splits, channels), and to an unsigned that is
  // zeroed.
  int64_t sums, bias_sums, counter;

  int splits, split_tiles, all_tiles;  // tiles of all images, and of a block
  int shell_blocks, block_shells;      // blocks of any size sum some of the shells
  int totals_at;                       // shared memory: floats (warps, block_shells + 1, channels of a chunk)
};

struct FoldParams {
  ProfileParams profile;
  WeightParams weights;
  const void* bias;  // (channels) or null
  float* values;     // as above
  int channels, chunks, chunk;
  DType bias_type;
};

}  // namespace radconv::cuda
