// The ring stage: shell sums of the halo, combined to basis functions, rounded and laid out for the product.
//
// Rings<T, K, KD> does it for a size that is known at compile time.  A thread owns a column of the tile and a word of
// channels and slides down kTileHeight rows.  Horizontal pairs x[-u] + x[u] are summed once per row and stay in
// registers until the last output that needs them; vertical pairs and shells follow; then a shell meets its value in
// each function.  In 3D the planes dz and -dz are done together, one |dz| after the other.
//
// Rings<T, 0, 0> does any size, support, stride and residue class, by a table of taps.

#pragma once

#include "cuda/block.cuh"
#include "cuda/primitives.cuh"
#include "cuda/taps.cuh"

namespace radconv::cuda {

// Functions of pixel p lie in 32-byte places p * ring_pitch(M) + i, whose 16-byte halves are permuted: so neither the
// stores of a warp (4 pixels, both halves) nor the rows of a matrix (8 pixels, one half) share banks.  The permutation
// repeats every 8 pixels, and takes few bits of the half's number, so that most of an address is known at compile time.
template <int M>
__device__ __forceinline__ int ring_offset(int pixel, int function, int half) {
  constexpr int kPitch = ring_pitch(M), kBits = kPitch % 2 == 1 ? 1 : 3;
  const int permuted = kPitch % 2 == 1 ? pixel / 4 % 2 : pixel / 2 % 2 * 2 + pixel / 4 % 2;
  const int number = 2 * function;
  return pixel * kPitch * kPixelBytes + ((number & ~kBits) + (((number & kBits) + half) ^ permuted)) * 16;
}

// Of a pixel `row` rows of kTileWidth below `pixel`, whose permutation is the same.
template <class T, int M>
__device__ __forceinline__ void store_rings(unsigned char* rings, int pixel, int row, int word,
                                            const float (&values)[M][T::kChannels]) {
#pragma unroll
  for (int i = 0; i < M; ++i)
    store_shared<uint32_t>(
        rings + ring_offset<M>(pixel, i, word / 4) + word % 4 * 4 + row * kTileWidth * ring_pitch(M) * kPixelBytes,
        T::pack(values[i]));
}

// Shell sums of one size, one column of a tile of HEIGHT rows at a time.
template <class T, int K, int KD, int HEIGHT = kTileHeight>
struct Shells {
  using Taps = Ball<K, KD>;
  static constexpr int kReach = K / 2, kSteps = KD / 2 + 1, kChannels = T::kChannels;
  static constexpr int kHaloWidth = kTileWidth + K - 1, kHaloHeight = HEIGHT + K - 1;
  static constexpr int kPlane = kHaloWidth * kHaloHeight;  // pixels

  // The halo of step dz: the planes -dz and dz, or the one plane 0.
  static __device__ __forceinline__ void load(const Source& source, int dz, const unsigned char* table,
                                              unsigned char* to, int thread) {
    constexpr int kPlanes = KD > 1 ? 2 : 1;
#pragma unroll 1
    for (int plane = 0; plane < kPlanes && plane <= dz; ++plane)
      load_pixels<T, false>(source, table + 4 * source.pixels * (KD / 2 + (plane == 0 ? -dz : dz)),
                            to + plane * kPlane * kPixelBytes, thread);
  }

  // x[-dx] + x[dx] in one row of the step's planes.
  template <int PLANES, int DX>
  static __device__ __forceinline__ void pair(float (&sum)[kChannels], const unsigned char* row) {
#pragma unroll
    for (int plane = 0; plane < PLANES; ++plane) {
      const unsigned char* at = row + plane * kPlane * kPixelBytes;
      const uint32_t left = load_shared<uint32_t>(at - DX * kPixelBytes);
      const uint32_t right = DX > 0 ? load_shared<uint32_t>(at + DX * kPixelBytes) : 0;
      static_for<kChannels>([&](auto j) {
        float both = T::template unpack<j>(left);
        if constexpr (DX > 0) both += T::template unpack<j>(right);
        sum[j] = plane > 0 ? sum[j] + both : both;
      });
    }
  }

  // Sums of step DZ (of both planes, or with PLANES == 1 of one) by squared distance within the plane, TOGETHER rows
  // at a time: sink.begin<row>() before the rows from there on, sink.radius<square>() before the sums of a distance,
  // sink.add<square, row>(sum), sink.end<row>().  Where not sink.whole(), the upper half of the tile is all there is.
  template <int DZ, int PLANES, int TOGETHER, class Sink>
  static __device__ __forceinline__ void walk(Sink& sink, const unsigned char* halo, int thread) {
    using Here = Plane<K, KD, DZ>;
    const unsigned char* const lane =
        halo + (kReach * kHaloWidth + kReach + thread / kWords) * kPixelBytes + 4 * (thread % kWords);
    float pairs[HEIGHT + 2 * kReach][kReach + 1][kChannels];
    const auto rows_from = [&](auto strip) {
      constexpr int first = strip * TOGETHER;
      sink.template begin<first>();
      static_for<kReach + 1>([&](auto dx) {
        constexpr int height = Here::height(dx);
        if constexpr (height >= 0) {
          constexpr int from = first + (strip == 0 ? -height : height), to = first + TOGETHER + height;
          static_for<to - from>([&](auto i) {
            constexpr int row = from + i;
            pair<PLANES, dx>(pairs[row + kReach][dx], lane + row * kHaloWidth * kPixelBytes);
          });
        }
      });
      static_for<Here::radii()>([&](auto index) {
        constexpr int square = Here::radius(index);
        sink.template radius<square>();
        static_for<TOGETHER>([&](auto r) {
          constexpr int row = first + r + kReach;
          float sum[kChannels];
          static_for<Here::count(square)>([&](auto t) {
            constexpr auto tap = Here::tap(square, t);
#pragma unroll
            for (int j = 0; j < kChannels; ++j) {
              float term = pairs[row + tap.dy][tap.dx][j];
              if constexpr (tap.dy > 0) term += pairs[row - tap.dy][tap.dx][j];
              sum[j] = t == 0 ? term : sum[j] + term;
            }
          });
          sink.template add<square, first + r>(sum);
        });
      });
      sink.template end<first>();
    };
    constexpr int kStrips = HEIGHT / TOGETHER, kUpper = kStrips > 1 ? kStrips / 2 : 1;
    static_for<kUpper>(rows_from);
    if (sink.whole())
      static_for<kStrips - kUpper>([&](auto strip) { rows_from(std::integral_constant<int, kUpper + strip>{}); });
  }
};

// Functions of the basis: every shell meets its value in each of them.
template <class T, int K, int KD>
struct Rings : Shells<T, K, KD> {
  using Base = Shells<T, K, KD>;
  static constexpr int kFunctions = K / 2 + 1, kChannels = T::kChannels;
  static constexpr int kPitch = (kFunctions + 3) / 4 * 4;  // of the basis, floats
  // outputs at a time: they share the loads of the basis
  static constexpr int kTogether = kChannels * K < 14 ? 4 : kChannels * K < 22 ? 2 : 1;

  using Sums = float[kTileHeight][kFunctions][kChannels];

  template <int DZ>
  struct Combine {
    Sums& sums;
    const unsigned char* basis;
    unsigned char* rings;
    int thread;
    bool is_whole;
    Float4 value[kPitch / 4];

    __device__ __forceinline__ bool whole() const { return is_whole; }

    template <int ROW>
    __device__ __forceinline__ void begin() {}

    template <int SQUARE>
    __device__ __forceinline__ void radius() {
      constexpr int shell = Base::Taps::shell(SQUARE + DZ * DZ);
#pragma unroll
      for (int i = 0; i < kPitch / 4; ++i) value[i] = load_shared<Float4>(basis + 4 * (shell * kPitch + 4 * i));
    }

    template <int SQUARE, int ROW>
    __device__ __forceinline__ void add(const float (&sum)[kChannels]) {
#pragma unroll
      for (int i = 0; i < kFunctions; ++i)
#pragma unroll
        for (int j = 0; j < kChannels; ++j) {
          float& total = sums[ROW][i][j];
          const float term = value[i / 4].v[i % 4] * sum[j];
          total = DZ == 0 && SQUARE == 0 ? term : total + term;
        }
    }

    // The last step stores them.
    template <int ROW>
    __device__ __forceinline__ void end() {
      if constexpr (DZ == Base::kSteps - 1)
        static_for<kTogether>([&](auto r) {
          store_rings<T, kFunctions>(rings, thread / kWords, ROW + r, thread % kWords, sums[ROW + r]);
        });
    }
  };

  // Adds step DZ to the sums.
  template <int DZ>
  static __device__ __forceinline__ void step(const ConvParams& p, Sums& sums, int, const unsigned char* halo,
                                              const unsigned char* memory, unsigned char* rings, int thread) {
    Combine<DZ> sink{sums, memory + p.basis_at, rings, thread, p.tile[1] == kTileHeight, {}};
    Base::template walk<DZ, (DZ > 0 ? 2 : 1), kTogether>(sink, halo, thread);
  }
};

// Any size: kTableFunctions functions at a time, their taps as bytes from a pixel's first one.
template <class T>
struct Rings<T, 0, 0> {
  static constexpr int kFunctions = kTableFunctions, kSteps = 1, kChannels = T::kChannels;
  static constexpr int kTogether = 4;  // pixels

  struct Sums {};  // nothing stays from one step to the next

  static __device__ __forceinline__ void load(const Source& source, int, const unsigned char* table, unsigned char* to,
                                              int thread) {
    load_pixels<T, false>(source, table, to, thread);
  }

  template <int DZ>
  static __device__ __forceinline__ void step(const ConvParams& p, Sums&, int pass, const unsigned char* halo,
                                              const unsigned char* memory, unsigned char* rings, int thread) {
    const Place at = load_place(p, memory);
    int table = 0;
    for (int axis = 0; axis < 3; ++axis) table = table * p.tap_classes[axis] + at.residue[axis] % p.tap_classes[axis];
    const int* const starts = p.tables + p.starts + table * (p.shells + 1);
    const float* const basis = reinterpret_cast<const float*>(p.workspace) + pass * kFunctions;
    const unsigned char* const pixels = memory + p.pixel_at;
    const int word = thread % kWords, slot = thread / kWords;
    const int* const taps = p.tables + p.taps;
    for (int first = slot; first < kPixels; first += kTileWidth * kTogether) {
      const unsigned char* from[kTogether];
#pragma unroll
      for (int r = 0; r < kTogether; ++r)
        from[r] = halo + load_shared<int>(pixels + 4 * (first + kTileWidth * r)) + 4 * word;
      float sums[kTogether][kFunctions][kChannels] = {};
      for (int shell = 0; shell < p.shells; ++shell) {
        float sum[kTogether][kChannels] = {};
        for (int tap = starts[shell]; tap < starts[shell + 1]; ++tap) {
          const int offset = taps[tap];
#pragma unroll
          for (int r = 0; r < kTogether; ++r) {
            const uint32_t value = load_shared<uint32_t>(from[r] + offset);
            static_for<kChannels>([&](auto j) { sum[r][j] += T::template unpack<j>(value); });
          }
        }
#pragma unroll
        for (int i = 0; i < kFunctions; ++i) {
          const float value = basis[shell * p.basis_pitch + i] * at.scale;
#pragma unroll
          for (int r = 0; r < kTogether; ++r)
#pragma unroll
            for (int j = 0; j < kChannels; ++j) sums[r][i][j] += value * sum[r][j];
        }
      }
#pragma unroll
      for (int r = 0; r < kTogether; ++r) store_rings<T, kFunctions>(rings, first, r, word, sums[r]);
    }
  }
};

}  // namespace radconv::cuda
