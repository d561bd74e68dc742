// Pixels around a tile, from global to shared memory: layout, alignment, padding, stride and dilation are dealt with
// here, and nowhere else.
//
// In shared memory a pixel is kPixelBytes of neighbouring channels.  A table, made once per block, says where each
// pixel of the halo lies in global memory, so that loading the next chunk of channels is a copy by table.

#pragma once

#include "cuda/geometry.h"
#include "cuda/primitives.cuh"

namespace radconv::cuda {

struct alignas(8) Float2 {
  float v[2];
};

struct alignas(16) Float4 {
  float v[4];
};

struct alignas(16) Words4 {
  uint32_t v[4];
};

// What a block works on; kept in shared memory, where it takes no registers.
struct Place {
  int image, group, out_block;
  int residue[3];  // class of its outputs
  int first[3];    // its first output, counted within the class
  int origin[3];   // input coordinate of the halo's first pixel, which may lie outside of x
  int64_t base;    // offset in x that the gather table counts from
  float scale;     // of float16 rings: smaller in a second attempt
};

__device__ __forceinline__ int take(unsigned& index, int count) {
  const unsigned whole = index / count, digit = index - whole * count;
  index = whole;
  return static_cast<int>(digit);
}

__device__ __forceinline__ void place_halo(const Geometry& p, Place& at) {
  for (int axis = 0; axis < 3; ++axis)
    at.origin[axis] = p.tables[p.origins[axis] + at.residue[axis]] + p.step[axis] * p.stride[axis] * at.first[axis];
  at.base = at.image * p.x_strides[0] + int64_t{at.group} * p.channels * p.x_strides[1];
  if (!p.wrap)
    for (int axis = 0; axis < 3; ++axis) at.base += at.origin[axis] * p.x_strides[2 + axis];
}

// One of the tiles of all images, once the group is known.
__device__ __forceinline__ void place_tile(const Geometry& p, Place& at, unsigned tile) {
  at.scale = 1.0f;
  for (int axis = 2; axis >= 0; --axis) at.first[axis] = take(tile, p.tiles[axis]) * p.tile[axis];
  for (int axis = 2; axis >= 0; --axis) at.residue[axis] = take(tile, p.classes[axis]);
  at.image = static_cast<int>(tile);
  place_halo(p, at);
}

// The tile behind this one.
__device__ __forceinline__ void place_next(const Geometry& p, Place& at) {
  bool carry = true;
  for (int axis = 2; axis >= 0; --axis) {
    at.first[axis] += carry ? p.tile[axis] : 0;
    carry = at.first[axis] == p.tiles[axis] * p.tile[axis];
    if (carry) at.first[axis] = 0;
  }
  for (int axis = 2; axis >= 0; --axis) {
    at.residue[axis] += carry;
    carry = at.residue[axis] == p.classes[axis];
    if (carry) at.residue[axis] = 0;
  }
  at.image += carry;
  place_halo(p, at);
}

static_assert(sizeof(Place) <= kPlaceBytes);

// Adds how far a pixel of the halo lies from there along one axis; false where that is outside of x.
__device__ __forceinline__ bool locate(const Geometry& p, const Place& at, int axis, int place, int64_t& offset) {
  const int size = p.in_size[axis];
  int input = at.origin[axis] + p.step[axis] * place;
  if (p.wrap) {
    input %= size;
    input += input < 0 ? size : 0;
  }
  offset += (input - (p.wrap ? 0 : at.origin[axis])) * p.x_strides[2 + axis];
  return input >= 0 && input < size;
}

// Bytes from there to each pixel of the halo, kOutside for zeros.  DEPTH, HEIGHT and WIDTH of the halo where they are
// known, else 0.
template <int THREADS, int DEPTH = 0, int HEIGHT = 0, int WIDTH = 0>
__device__ __forceinline__ void make_gather_table(const Geometry& p, const Place& at, unsigned char* table,
                                                  int thread) {
  const int sizes[3] = {DEPTH > 0 ? DEPTH : p.halo[0], HEIGHT > 0 ? HEIGHT : p.halo[1], WIDTH > 0 ? WIDTH : p.halo[2]};
  const int pixels = sizes[0] * sizes[1] * sizes[2];
  for (int pixel = thread; pixel < pixels; pixel += THREADS) {
    unsigned rest = pixel;
    int64_t offset = 0;
    bool inside = true;
    for (int axis = 2; axis >= 0; --axis) inside &= locate(p, at, axis, take(rest, sizes[axis]), offset);
    store_shared<unsigned>(table + 4 * pixel, inside ? static_cast<unsigned>(offset * p.item) : kOutside);
  }
}

// Of kernels of any size: where in the halo a pixel of the tile meets the first tap, in bytes; 0 of pixels that the
// tile doesn't have.
__device__ __forceinline__ void make_pixel_table(const Geometry& p, unsigned char* table, int pixel) {
  unsigned rest = pixel;
  int place[3];
  for (int axis = 2; axis >= 0; --axis) place[axis] = take(rest, p.tile[axis]) * p.stride[axis];
  const int at = (place[0] * p.halo[1] + place[1]) * p.halo[2] + place[2];
  store_shared<int>(table + 4 * pixel, rest > 0 ? 0 : at * kPixelBytes);
}

// One chunk of channels of some pixels, for load_pixels.
struct Source {
  const unsigned char* data;  // the chunk's first channel at the place that the gather table counts from
  int64_t channel;            // bytes from a channel to the next
  int left;                   // channels that there are from that one on
  int pixels;
  Loader loader;
};

// A pixel's place in shared memory and its halves of 16 bytes.  Swizzled: every other four pixels have their halves the
// other way round, so that eight pixels' halves share no banks.
template <bool SWIZZLED>
__device__ __forceinline__ int pixel_offset(int pixel, int half) {
  return pixel * kPixelBytes + (SWIZZLED ? half ^ pixel / 4 % 2 : half) * 16;
}

// By the 128 threads of a group.
template <class T, bool SWIZZLED>
__device__ __forceinline__ void load_pixels(const Source& source, const unsigned char* table, unsigned char* to,
                                            int thread) {
  using Scalar = typename T::Scalar;
  constexpr int kItem = sizeof(Scalar);
  const int pixels = source.pixels;
  int left = source.left;
  if (source.loader == Loader::kVector) {
    const int first = thread % 2 * 16, there = max(0, min(left * kItem - first, 16));
    const unsigned char* const from = source.data + first;
    table += thread / 2 * 4;
    to += pixel_offset<SWIZZLED>(thread / 2, thread % 2);
    if (left >= kWords * T::kChannels) {
#pragma unroll(SWIZZLED ? 1 : 2)
      for (int pixel = thread / 2; pixel < pixels; pixel += kGroupThreads / 2) {
        const unsigned offset = load_shared<unsigned>(table);
        if (offset != kOutside)
          copy_async<16>(to, from + offset);
        else
          store_shared<Float4>(to, Float4{});
        table += kGroupThreads / 2 * 4;
        to += kGroupThreads * 16;
      }
      return;
    }
#pragma unroll 1
    for (int pixel = thread / 2; pixel < pixels; pixel += kGroupThreads / 2) {
      const unsigned offset = load_shared<unsigned>(table);
      const int bytes = offset == kOutside ? 0 : there;
      copy_async<16>(to, bytes ? from + offset : source.data, bytes);
      table += kGroupThreads / 2 * 4;
      to += kGroupThreads * 16;
    }
    return;
  }
  // A warp takes 8 pixels by 4 words, twice: neighbours in memory, whatever the layout, and few shared banks.
  const int word = thread / 8 % 4;
  const int64_t step = T::kChannels * source.channel;  // from one word to the next
  const unsigned char* const from = source.data + word * step;
  left -= word * T::kChannels;
  if constexpr (kItem == 2)
    if (source.loader == Loader::kScalar) {
      // many loads at a time, whose latency nothing else hides; few where sums take the registers
      constexpr int kTogether = SWIZZLED ? 1 : 4;
#pragma unroll 1
      for (int first = thread / 32 * 8 + thread % 8; first < pixels; first += kTogether * (kGroupThreads / 4)) {
        uint32_t words[kTogether][2];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int pixel = first + i * (kGroupThreads / 4);
          const unsigned offset = pixel < pixels ? load_shared<unsigned>(table + 4 * pixel) : kOutside;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int channels = offset == kOutside ? 0 : left - half * 4 * T::kChannels;
            const unsigned char* const at = from + offset + half * 4 * step;
            const uint32_t low = channels > 0 ? *reinterpret_cast<const Scalar*>(at) : 0;
            const uint32_t high = channels > 1 ? *reinterpret_cast<const Scalar*>(at + source.channel) : 0;
            words[i][half] = low | high << 16;
          }
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            if (first + i * (kGroupThreads / 4) < pixels)
              store_shared<uint32_t>(to + pixel_offset<SWIZZLED>(first + i * (kGroupThreads / 4), half) + 4 * word,
                                     words[i][half]);
      }
      return;
    }
#pragma unroll 1
  for (int pixel = thread / 32 * 8 + thread % 8; pixel < pixels; pixel += kGroupThreads / 4) {
    const unsigned offset = load_shared<unsigned>(table + 4 * pixel);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int channels = offset == kOutside ? 0 : left - half * 4 * T::kChannels;
      const unsigned char* const at = from + offset + half * 4 * step;
      unsigned char* const target = to + pixel_offset<SWIZZLED>(pixel, half) + 4 * word;
      if (channels <= 0) {
        store_shared<uint32_t>(target, 0);
      } else if (channels >= T::kChannels) {
        copy_async<4>(target, at);
      } else {
        copy_async<4>(target, at, channels * kItem);
      }
    }
  }
}

}  // namespace radconv::cuda
