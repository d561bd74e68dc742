// What the launches of the weight gradient are told: sums over pixels, and how they become gradients.  Plain C++.

#pragma once

#include <cstdint>

#include "cuda/conv.h"
#include "cuda/profile_params.h"

namespace radconv::cuda {

// A block sums over its share of the tiles: up to 128 outputs by some chunks of input channels by up to
// kMostFunctions shells.  Its first eight warps multiply, four warps gather shell sums.
constexpr int kMostFunctions = 16;
constexpr int kTableShells = 8;  // that kernels of any size make
constexpr int kPartPixels = 64;  // that are handed over at a time
constexpr int kMultiplyThreads = 2 * kGroupThreads;
constexpr int kGradientThreads = kMultiplyThreads + kGroupThreads;

constexpr int outputs_of_warp(bool exact) { return exact ? 16 : 32; }

// Chunks of channels that a block takes, so that few shells fill the sums as well.
constexpr int chunks_together(int shells) { return shells <= 4 ? 4 : shells <= 8 ? 2 : 1; }

// Of a tile: one in 3D, whose halo is larger and whose sums stay in registers over several planes; else two.
constexpr int parts_of_tile(int depth) { return depth > 1 ? 1 : 2; }

// Parts of the output's gradient that are in shared memory at a time.
constexpr int grad_slots(int shells, int depth) { return 2 * (chunks_together(shells) > 1 ? parts_of_tile(depth) : 1); }

// A tile's outputs: 16 bytes ahead of them.
constexpr int kGradTableHead = 16, kGradTableBytes = kGradTableHead + 4 * kPixels;

struct GradientParams : Geometry {
  const void* grad;
  int64_t grad_strides[5];
  Loader grad_loader;
  unsigned char* workspace;

  int plane;                      // pixels of the halo that are loaded at a time
  int outputs;                    // of one group
  int out_blocks, block_outputs;  // outputs of a block, a multiple of 32 bytes
  int chunk_blocks, passes;       // blocks along the channels, and along the shells
  int splits, all_tiles;          // tiles of all images, and among how many blocks they are split
  int pixel_split_bits;           // log2 of among how many warps the pixels of a part are; each has a copy of the sums
  bool wants_bias;

  // Workspace: bytes to these places.  Sums are (copies, groups, shells, outputs, channel_pitch) floats, those for the
  // bias (copies, groups, outputs).
  int64_t sums, bias_sums, counter;
  int channel_pitch;

  // Shared memory: bytes from these places on
  int halo_bytes, ring_at, grad_at, gather_at, grad_table_at, pixel_at, bias_at, task_at, places_at;
};

constexpr int kFinishThreads = 256;
constexpr int kMostFinishBlocks = 128;
constexpr int kMostFinishShared = 48 * 1024;  // that every block has without asking

// Threads for each of so many sums.
constexpr int finish_ways(int sums) { return sums < kFinishThreads ? kFinishThreads / sums : 1; }

struct FinishParams {
  ProfileParams profile;
  WeightParams weights;
  unsigned char* workspace;
  int64_t sums, bias_sums, counter;  // as above
  int64_t shares;                    // doubles (blocks, rings, shells): each block's part of the profile's gradient
  int copies, shells, channel_pitch;
  int outputs, channels, groups, merged;  // of the sums' groups, each of which may be several of the weights
  int pairs_together;                     // (output, channel) that a block works on at a time

  void *grad_w, *grad_parameter, *grad_bias;  // null where not wanted; the last is float32
};

}  // namespace radconv::cuda
