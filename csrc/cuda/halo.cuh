// Pixels around a tile, from global to shared memory: layout, alignment, padding, stride and dilation are dealt with
// here, and nowhere else.
//
// In shared memory a pixel is kPixelBytes of neighbouring channels.  A table, made once per block, says where each
// pixel of the halo lies in global memory, so that loading the next chunk of channels is a copy by table.

#pragma once

#include "cuda/conv.h"
#include "cuda/primitives.cuh"

namespace radconv::cuda {

// What a block works on; kept in shared memory, where it takes no registers.
struct Place {
  int image, group, out_block;
  int residue[3];  // class of its outputs
  int first[3];    // its first output, counted within the class
  int origin[3];   // input coordinate of the halo's first pixel, which may lie outside of x
  int64_t base;    // its offset in x
};

__device__ __forceinline__ int take(unsigned& index, int count) {
  const unsigned whole = index / count, digit = index - whole * count;
  index = whole;
  return static_cast<int>(digit);
}

__device__ __forceinline__ Place place_of(const ConvParams& p, unsigned block) {
  Place at;
  at.out_block = take(block, p.out_blocks);
  for (int axis = 2; axis >= 0; --axis) at.first[axis] = take(block, p.tiles[axis]) * p.tile[axis];
  for (int axis = 2; axis >= 0; --axis) at.residue[axis] = take(block, p.classes[axis]);
  at.group = take(block, p.groups);
  at.image = static_cast<int>(block);
  for (int axis = 0; axis < 3; ++axis)
    at.origin[axis] = p.tables[p.origins[axis] + at.residue[axis]] + p.step[axis] * p.stride[axis] * at.first[axis];
  at.base = at.image * p.x_strides[0] + int64_t{at.group} * p.channels * p.x_strides[1];
  for (int axis = 0; axis < 3; ++axis) at.base += at.origin[axis] * p.x_strides[2 + axis];
  return at;
}

__device__ __forceinline__ Place load_place(const ConvParams& p, const unsigned char* memory) {
  return load_shared<Place>(memory + p.place_at);
}

// Offsets from there of all pixels of the halo, kOutside for zeros.
__device__ __forceinline__ void make_gather_table(const ConvParams& p, const Place& at, unsigned char* table) {
  const int pixels = p.halo[0] * p.halo[1] * p.halo[2];
  for (int pixel = threadIdx.x; pixel < pixels; pixel += kThreads) {
    unsigned rest = pixel;
    int offset = 0;
    bool inside = true;
    for (int axis = 2; axis >= 0; --axis) {
      const int size = p.in_size[axis];
      int input = at.origin[axis] + p.step[axis] * take(rest, p.halo[axis]);
      if (p.wrap) {
        input %= size;
        input += input < 0 ? size : 0;
      }
      inside = inside && input >= 0 && input < size;
      offset += static_cast<int>((input - at.origin[axis]) * p.x_strides[2 + axis]);
    }
    store_shared<int>(table + 4 * pixel, inside ? offset : kOutside);
  }
}

// `pixels` pixels of one chunk of channels, by the 128 threads of a group.  `base` is the place of the chunk's first
// channel, `left` how many channels there are from it on.
template <class T>
__device__ __forceinline__ void load_halo(const ConvParams& p, int64_t base, int left, const unsigned char* table,
                                          unsigned char* to, int pixels, int thread) {
  using Scalar = typename T::Scalar;
  constexpr int kItem = sizeof(Scalar);
  const Scalar* const x = static_cast<const Scalar*>(p.x);
  if (p.loader == Loader::kVector) {
    constexpr int kMany = 16 / kItem;
    const int first = thread % 2 * kMany, there = max(0, min(left - first, kMany)) * kItem;
    const Scalar* const from = x + base + first;
    table += thread / 2 * 4;
#pragma unroll 2
    for (int at = thread * 16; at < pixels * kPixelBytes; at += kGroupThreads * 16) {
      const int offset = load_shared<int>(table);
      table += kGroupThreads / 2 * 4;
      copy_async<16>(to + at, from + (offset == kOutside ? 0 : offset), offset == kOutside ? 0 : there);
    }
    return;
  }
  // neighbouring lanes take neighbouring channels, or pixels where these are the neighbours in memory
  const bool along_pixels = p.x_strides[1] != 1;
  const int word = along_pixels ? thread / 8 % kWords : thread % kWords;
  const int there = max(0, min(left - word * T::kChannels, T::kChannels)) * kItem;
  const Scalar* const from = x + base + word * T::kChannels * p.x_strides[1];
#pragma unroll 2
  for (int first = 0; first < pixels; first += kGroupThreads / kWords) {
    const int pixel = first + (along_pixels ? thread / 64 * 8 + thread % 8 : thread / kWords);
    if (pixel >= pixels) break;
    const int offset = load_shared<int>(table + 4 * pixel), bytes = offset == kOutside ? 0 : there;
    unsigned char* const target = to + pixel * kPixelBytes + 4 * word;
    if (p.loader == Loader::kWord) {
      copy_async<4>(target, from + (bytes ? offset : 0), bytes);
    } else if constexpr (kItem == 2) {
      const uint32_t low = bytes > 0 ? from[offset] : 0, high = bytes > 2 ? from[offset + p.x_strides[1]] : 0;
      store_shared<uint32_t>(target, low | high << 16);
    }
  }
}

}  // namespace radconv::cuda
