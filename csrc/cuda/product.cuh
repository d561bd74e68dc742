// The product: rings (pixels x functions) by folded weights (functions x outputs) on the matrix units, and the way out.
//
// Four warps share 128 pixels by up to 128 outputs: two by two, 64 by 64 each, or, with at most 64 outputs, one above
// the other, 32 by 64 each; half a tile two by two, 32 pixels each.  The sums stay in registers over all channels.

#pragma once

#include "cuda/block.cuh"
#include "cuda/primitives.cuh"
#include "cuda/rings.cuh"
#include "cuda/scalars.cuh"

namespace radconv::cuda {

// What one of the four warps multiplies.
struct Share {
  int pixels, outputs;  // at most 64 each; no outputs where <= 0
  int first_output, first_pixel, lane;

  __device__ __forceinline__ Share(const ConvParams& p, int out_block, int thread) {
    const int of_block = min(p.block_outputs, p.outputs - out_block * p.block_outputs);
    const bool half = p.tile[1] < kTileHeight && p.tile[2] == kTileWidth && p.tile[0] == 1;  // of a tile: 64 pixels
    const bool two_by_two = half || of_block > 64;
    const int width = of_block > 64 ? 64 : half ? 32 : 64;
    pixels = two_by_two && !half ? 64 : 32;
    first_output = two_by_two ? thread / 64 * width : 0;
    first_pixel = two_by_two ? thread / 32 % 2 * pixels : thread / 32 * 32;
    outputs = min(width, of_block - first_output);
    lane = thread % 32;
  }

  __device__ __forceinline__ bool has(int pixel_block) const { return pixel_block < 2 || pixels == 64; }
};

// kRows blocks of 16 pixels at a time meet an operand of weights: 4, or fewer where registers are short.
template <class T, int M, int kRows>
struct Product {
  float sums[4][8][4];  // 16-pixel blocks, 8-output blocks, fragment

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[m][n][j] = 0.0f;
  }

  // Adds some functions: weights (functions, block_outputs, kPixelBytes).
  __device__ __forceinline__ void add(const Share& share, const unsigned char* rings, const unsigned char* weights,
                                      int functions, int block_outputs) {
    if (share.outputs == 64 && share.pixels == 64)
      add<true>(share, rings, weights, functions, block_outputs);
    else if (share.outputs > 0)
      add<false>(share, rings, weights, functions, block_outputs);
  }

  // WHOLE: 64 pixels by 64 outputs, nothing to ask.
  template <bool WHOLE>
  __device__ __forceinline__ void add(const Share& share, const unsigned char* rings, const unsigned char* weights,
                                      int functions, int block_outputs) {
    const int lane = share.lane, row = share.first_pixel + lane % 16;
    const int output = share.first_output + lane / 16 * 8 + lane % 8, half = lane / 8 % 2 ^ output / 4 % 2;
    const unsigned char* const even = rings + ring_offset<M>(row, 0, lane / 16);
    const unsigned char* const odd = rings + ring_offset<M>(row, 1, lane / 16) - kPixelBytes;  // the same in most sizes
    weights += output * kPixelBytes + half * 16;
#pragma unroll(WHOLE&& kRows == 4 ? 2 : 1)
    for (int function = 0; function < functions; ++function) {
      const unsigned char* const at = (function % 2 == 0 ? even : odd) + function * kPixelBytes;
#pragma unroll
      for (int first = 0; first < 4; first += kRows) {
        if (!WHOLE && !share.has(first)) continue;
        // else ptxas keeps the weights for all rows, for which full float32 has no registers
        if constexpr (std::is_same_v<T, Float32>) __syncwarp();
        uint32_t a[kRows][4];
#pragma unroll
        for (int m = 0; m < kRows; ++m)
          if (WHOLE || share.has(first + m)) load_matrices(a[m], at + (first + m) * 16 * ring_pitch(M) * kPixelBytes);
#pragma unroll
        for (int n = 0; n < 4; ++n)
          if (WHOLE || n * 16 < share.outputs) {
            uint32_t b[4];
            load_matrices(b, weights + n * 16 * kPixelBytes);
#pragma unroll
            for (int m = 0; m < kRows; ++m)
              if (WHOLE || share.has(first + m)) {
                T::multiply(sums[first + m][2 * n], a[m], b[0], b[1]);
                T::multiply(sums[first + m][2 * n + 1], a[m], b[2], b[3]);
              }
          }
      }
      weights += block_outputs * kPixelBytes;
    }
  }

  __device__ __forceinline__ bool is_finite() const {
    bool finite = true;
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) finite = finite && fabsf(sums[m][n][j]) < INFINITY;
    return finite;
  }

  // Sums, back from the rings' scale, plus bias, to y.  They go through shared memory, so that neighbours in global
  // memory are written together whatever the layout.  KNOWN: the tile is one of a size that is known.
  template <bool KNOWN>
  __device__ __forceinline__ void store(const ConvParams& p, unsigned char* memory, int thread) {
    using Scalar = typename T::Scalar;
    const Place at = load_place(p, memory);
    const Share share(p, at.out_block, thread);  // made anew: nothing stays in registers during the product
    if (share.outputs <= 0) return;
    const int lane = share.lane;
    unsigned char* const staging = memory + thread / 32 * kStageBytes;
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int row = 0; row < 2; ++row)
          if (share.has(m))
            store_shared<Float2>(staging + 4 * ((m * 16 + row * 8 + lane / 4) * kStagePitch + 8 * n + lane % 4 * 2),
                                 {sums[m][n][2 * row], sums[m][n][2 * row + 1]});
    __syncwarp();

    const float back = 1.0f / at.scale;
    const int output = at.group * p.outputs + at.out_block * p.block_outputs + share.first_output;
    const int64_t image = at.image * p.y_strides[0] + output * p.y_strides[1];
    if (p.wide_stores) {
      // channels are neighbours: a lane writes 8 of them, 16 or 32 bytes, of every fourth pixel
      const int channel = lane % 8 * 8;
      if (channel >= share.outputs) return;
      float bias[8];
#pragma unroll
      for (int j = 0; j < 8; ++j)
        bias[j] = p.bias == nullptr ? 0.0f : as_float(p.bias, output + channel + j, p.bias_type);
#pragma unroll 2
      for (int pixel = lane / 8; pixel < share.pixels; pixel += 4) {
        int64_t offset = image + channel;
        if (!locate_output<KNOWN>(p, at, share.first_pixel + pixel, offset)) continue;
        const unsigned char* const from = staging + 4 * (pixel * kStagePitch + channel);
        Scalar* const to = static_cast<Scalar*>(p.y) + offset;
        Float4 values[2] = {load_shared<Float4>(from), load_shared<Float4>(from + 16)};
#pragma unroll
        for (int j = 0; j < 8; ++j) values[j / 4].v[j % 4] = values[j / 4].v[j % 4] * back + bias[j];
        if constexpr (sizeof(Scalar) == 4) {
          reinterpret_cast<Float4*>(to)[0] = values[0];
          reinterpret_cast<Float4*>(to)[1] = values[1];
        } else {
          Words4 words;
#pragma unroll
          for (int j = 0; j < 4; ++j)
            words.v[j] = T::pack({values[j / 2].v[j % 2 * 2], values[j / 2].v[j % 2 * 2 + 1]});
          *reinterpret_cast<Words4*>(to) = words;
        }
      }
      return;
    }
    // a lane keeps to one pixel; 16 pixels are neighbours, or, where channels are, 8 of these
    const bool along_pixels = p.y_strides[1] != 1;
    const int together = along_pixels ? 16 : 4, first = along_pixels ? lane / 16 : lane % 8;
    for (int pixel = along_pixels ? lane % 16 : lane / 8; pixel < share.pixels; pixel += together) {
      int64_t offset = image;
      if (!locate_output<KNOWN>(p, at, share.first_pixel + pixel, offset)) continue;
      const unsigned char* const from = staging + 4 * pixel * kStagePitch;
      Scalar* const to = static_cast<Scalar*>(p.y) + offset;
#pragma unroll 4
      for (int channel = first; channel < share.outputs; channel += 32 / together) {
        float value = load_shared<float>(from + 4 * channel) * back;
        if (p.bias != nullptr) value += as_float(p.bias, output + channel, p.bias_type);
        to[channel * p.y_strides[1]] = T::from_float(value);
      }
    }
  }

  // Adds how far the tile's `pixel` lies from its image's first one; false where there is none: a tile may be cut off
  // by the image's end, and of any size have fewer than kPixels.
  template <bool KNOWN>
  static __device__ __forceinline__ bool locate_output(const ConvParams& p, const Place& at, int pixel,
                                                       int64_t& offset) {
    const int tile[3] = {KNOWN ? 1 : p.tile[0], KNOWN ? kTileHeight : p.tile[1], KNOWN ? kTileWidth : p.tile[2]};
    unsigned rest = pixel;
    bool inside = true;
#pragma unroll
    for (int axis = 2; axis >= 0; --axis) {
      const int place = p.classes[axis] * (at.first[axis] + take(rest, tile[axis])) + at.residue[axis];
      inside = inside && place < p.out_size[axis];
      offset += place * p.y_strides[2 + axis];
    }
    return inside && rest == 0;
  }
};

}  // namespace radconv::cuda
