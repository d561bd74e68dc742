// What a plan costs: the one model that tile sizes, splits and the choice between fused and dense go by.
//
// Its unit is the clock of a multiprocessor.  The constants are counted from compiled code (benchmarks/README.md) for
// sm_90 and bfloat16; none has been measured on a card.  They rank plans of one problem, and promise no time.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cuda/geometry.h"

namespace radconv::cuda {

struct Card {
  int shared;           // bytes that a block may have
  int multiprocessors;  // a block of the convolution takes one
};

constexpr int64_t kMostWorkspace = 64 << 20;  // of copies of a weight gradient's sums, unless one takes more
constexpr int kReservedShared = 1024;         // of each block on a multiprocessor, by the system

constexpr double kSlotsPerClock = 128;        // issue slots of a multiprocessor, counted per lane
constexpr double kStartClocks = 3000;         // of a block: tables, first copies, way out
constexpr double kTapSlots = 0.5;             // additions of a shell, one for every other tap
constexpr double kHaloSlots = 1.2;            // of a pixel of the halo, for each column of the kernel's half
constexpr double kTableTapSlots = 2.5;        // of a tap in a kernel of any size
constexpr double kOtherSlots = 8;             // of a pixel: packing, storing, loops
constexpr double kFunctionSlots = 2.0;        // of the product, for one function and 128 outputs
constexpr double kProductSlots = 14;          // of the product, whatever its size
constexpr double kMatrixFlopPerClock = 1680;  // of mma.sync, halves
constexpr double kBytesPerClock = 16;         // of device memory, a multiprocessor's share
constexpr double kDenseFlopPerClock = 2800;   // 650 TFLOP/s on 132 multiprocessors
constexpr double kPlainFlopPerClock = 230;    // of full float32 on the plain units, nine tenths of their peak
constexpr double kCopyClocks = 20;            // of each copy of a weight gradient's sums in finish.cu, by latency
constexpr int kDenseTile = 128, kDenseOutputs = 64, kDenseChannels = 8;  // what a dense kernel rounds sizes up to
constexpr double kDenseStartClocks = 100000;                             // half a dozen small launches

// How much longer the matrix units take than with halves: full float32 takes three products of TF32.
constexpr double matrix_share(Format format) {
  return format == Format::kFloat32 ? 6 : format == Format::kTF32 ? 2 : 1;
}

struct Stage {
  Format format;
  int64_t pixels, halo;  // of one block, and of its halo
  int64_t taps;
  int k;  // 0: any size
  int shells, functions, outputs;
  int64_t steps;  // chunks of `channels` channels
  int channels;
};

inline double waves(int64_t blocks, int multiprocessors) {
  return static_cast<double>(ceil_div(std::max<int64_t>(blocks, 1), multiprocessors));
}

// Of the ring stage, for a pixel of a channel.
inline double ring_slots(const Stage& s) {
  const double halo = static_cast<double>(s.halo) / static_cast<double>(s.pixels);
  const double sums = s.k > 0 ? kTapSlots * s.taps + kHaloSlots * (s.k / 2 + 1) * halo : kTableTapSlots * s.taps + halo;
  return sums + double{1} * s.shells * s.functions + kOtherSlots;
}

// Of the product, for a pixel of a channel.
inline double matrix_clocks(const Stage& s) {
  return 2.0 * matrix_share(s.format) * s.functions * s.outputs / kMatrixFlopPerClock;
}

// One block of the fused convolution.
inline double block_clocks(const Stage& s) {
  const double product = kFunctionSlots * matrix_share(s.format) * s.functions * s.outputs / 128 + kProductSlots;
  return kStartClocks + static_cast<double>(s.steps * s.channels * s.pixels) *
                            std::max((ring_slots(s) + product) / kSlotsPerClock, matrix_clocks(s));
}

// One tile of the weight gradient: its warps multiply while others sum shells.
inline double gradient_clocks(const Stage& s) {
  const double pixels = static_cast<double>(s.steps * s.channels * s.pixels);
  const double slots = ring_slots(s) - double{1} * s.shells * s.functions + (kFunctionSlots + 1) * s.functions;
  return pixels * std::max(slots / kSlotsPerClock, matrix_clocks(s));
}

// Among how many blocks the tiles of each unit of a weight gradient are split: more of them fill the card, and leave
// more copies of the sums, `copies` each, of `copy_bytes` in all, to be written, read and added.
inline int64_t best_splits(int64_t units, int64_t tiles, double tile_clocks, int copies, double copy_bytes,
                           int64_t most, const Card& card) {
  int64_t best = 1;
  double least = INFINITY;
  for (int64_t splits = 1; splits <= std::min(most, 4 * ceil_div(card.multiprocessors, units)); ++splits) {
    const double blocks = waves(units * splits, card.multiprocessors);
    const double time =
        blocks * (kStartClocks + static_cast<double>(ceil_div(tiles, splits)) * tile_clocks) +
        static_cast<double>(splits) * (copies * kCopyClocks + 2 * copy_bytes / (kBytesPerClock * card.multiprocessors));
    if (time >= least) continue;
    least = time;
    best = splits;
  }
  return best;
}

// Input and output of a convolution, to and from device memory once: no kernel takes less.
inline double memory_clocks(const ConvShape& shape, const Card& card) {
  int64_t in = shape.in_per_group, out = shape.out_per_group;
  for (const Axis& a : shape.axis) {
    in *= a.in;
    out *= a.out;
  }
  const double elements = static_cast<double>(shape.batch * shape.groups) * static_cast<double>(in + out);
  return elements * item_bytes(shape.dtype) / (kBytesPerClock * card.multiprocessors);
}

// The dense convolution, as good as there is one, and the kernel that has to be written out for it first.
inline double dense_clocks(const ConvShape& shape, Format format, const Card& card) {
  int64_t pixels = shape.batch, taps = 1;
  for (const Axis& a : shape.axis) {
    pixels *= a.out;
    taps *= a.kernel;
  }
  const int64_t blocks = shape.groups * ceil_div(pixels, kDenseTile) * ceil_div(shape.out_per_group, kDenseOutputs);
  const int64_t depth = taps * round_up(shape.in_per_group, kDenseChannels);
  const double block = 2.0 * static_cast<double>(depth) * kDenseOutputs * kDenseTile /
                       (format == Format::kFloat32 ? kPlainFlopPerClock : kDenseFlopPerClock / matrix_share(format));
  return kDenseStartClocks + std::max(memory_clocks(shape, card), waves(blocks, card.multiprocessors) * block);
}

}  // namespace radconv::cuda
