// The gradient by the weights, fused: sums over all pixels of shell sums of x times the gradient of the output.
//
// A block owns up to 128 outputs, one to four chunks of channels (32 bytes a pixel: 16 halves or 8 floats) and all
// shells, or, of any size, some, and walks over its share of the tiles.  Four warps copy the halo of a chunk into
// shared memory, sum shells (rings.cuh) and leave them, rounded to the tensor's type, to eight warps, which multiply
// them by the output's gradient; the sums stay in registers until the end.  Then they go to the workspace, of which
// each split has its own part, and finish.cu adds these up in order: runs are bitwise equal.
//
// Shells, rather than the fewer rings and their derivatives, since a function costs a multiply-add for every shell on
// the plain units, and a shell more only matrix instructions.
//
// What bounds it, by counting (python -m benchmarks.resources): half types on sm_90 shared memory up to k = 7, then the
// matrix units.
//
// This file is compiled once per kernel size: RADCONV_K wide and high, RADCONV_KD deep, 0 for any.

#include "cuda/gradient.h"

#include "cuda/halo.cuh"
#include "cuda/launcher.cuh"
#include "cuda/primitives.cuh"
#include "cuda/rings.cuh"

namespace radconv::cuda {
namespace {

// Named barriers; two of each of the last two, one per place of a part.
enum : int { kHalo = 1, kGrad = 2, kFull = 3, kFree = 5 };

// ---- what a size means ----------------------------------------------------------------------------------------------

template <int K, int KD>
struct Size {
  static constexpr int kFunctions = Ball<K, KD>::kShells;
  static constexpr int kChunks = chunks_together(kFunctions);
  static constexpr int kParts = parts_of_tile(KD);
  static constexpr int kSlots = grad_slots(kFunctions, KD);
};

template <>
struct Size<0, 0> {
  [[maybe_unused]] static constexpr int kFunctions = kTableShells, kChunks = 1, kParts = 2, kSlots = 2;
};

template <class T, int K, int KD>
struct Constants : Size<K, KD> {
  using Base = Size<K, KD>;
  static_assert(Base::kFunctions <= kMostFunctions);
  static constexpr int kAhead = Base::kSlots / 2;                                     // parts that are loaded ahead
  static constexpr int kTablesAhead = Base::kParts / kAhead >= 2 ? 1 : 2;             // tiles whose table is made ahead
  static constexpr int kChannels = kWords * T::kChannels;                             // of a chunk
  static constexpr int kHalves = T::kChannels;                                        // of a chunk, 8 channels each
  static constexpr int kMatrices = outputs_of_warp(std::is_same_v<T, Float32>) / 16;  // of outputs, for each warp
  static constexpr int kDepth = 32 / sizeof(typename T::Scalar);                      // pixels of a matrix instruction
  static constexpr int kPartSteps = kPartPixels / kDepth;
  static constexpr int kRows = kPartPixels / kTileWidth;  // of a part
  static constexpr int kHeight = kRows * Base::kParts;    // of a tile
  static constexpr int kHaloHeight = K > 0 ? kHeight + K - 1 : 0, kHaloWidth = K > 0 ? kTileWidth + K - 1 : 0;
  static constexpr int kPartBytes = kPartPixels * ring_pitch(Base::kFunctions) * kPixelBytes;
  static constexpr int kTogether = T::kChannels * K < 14 ? 4 : KD > 1 ? 1 : 2;  // rows
};

// What one block works on; kept in shared memory, where it takes no registers.
struct Task {
  int group, out_block, chunk_block, pass, split, first_tile, tiles;
  int chunks;   // of channels
  float scale;  // of float16 shell sums: smaller in a second attempt

  // Of the blocks that have the same outputs and tiles, one sums for the bias.
  __device__ __forceinline__ bool sums_bias() const { return chunk_block == 0 && pass == 0; }
};

template <class C>
__device__ __forceinline__ Task task_of(const GradientParams& p, unsigned block) {
  Task task;
  task.chunk_block = take(block, p.chunk_blocks);
  task.pass = take(block, p.passes);
  task.out_block = take(block, p.out_blocks);
  task.group = take(block, p.groups);
  task.split = static_cast<int>(block);
  task.first_tile = static_cast<int>(int64_t{p.all_tiles} * task.split / p.splits);
  task.tiles = static_cast<int>(int64_t{p.all_tiles} * (task.split + 1) / p.splits) - task.first_tile;
  const int channels = p.channels - task.chunk_block * C::kChunks * C::kChannels;
  task.chunks = min(C::kChunks, (channels + C::kChannels - 1) / C::kChannels);
  task.scale = 1.0f;
  return task;
}

__device__ __forceinline__ Task load_task(const GradientParams& p, const unsigned char* memory) {
  return load_shared<Task>(memory + p.task_at);
}

// The block's tiles one after the other, each Place made by one thread while the last is in use.
struct Places {
  unsigned char* memory;  // two of them

  __device__ __forceinline__ void begin(const GradientParams& p, const Task& task) const {
    Place at;
    at.out_block = task.out_block;
    at.group = task.group;
    place_tile(p, at, task.first_tile);
    store_shared<Place>(memory, at);
  }
  // `tile` counts the block's own.  A barrier is needed between one and the next.
  __device__ __forceinline__ Place at(const GradientParams& p, int tile, bool makes_next) const {
    const Place place = load_shared<Place>(memory + tile % 2 * kPlaceBytes);
    if (makes_next) {
      Place next = place;
      place_next(p, next);
      store_shared<Place>(memory + (tile + 1) % 2 * kPlaceBytes, next);
    }
    return place;
  }
};

// ---- four warps: shell sums -----------------------------------------------------------------------------------------

// Parts of shell sums go to two places in turn.
struct Handover {
  int count = 0;

  __device__ __forceinline__ int place() const { return count % 2; }
  // Until the place is free.
  __device__ __forceinline__ void wait() const {
    if (count >= 2) barrier_sync(kFree + place(), kGradientThreads);
  }
  __device__ __forceinline__ void done() {
    barrier_arrive(kFull + place(), kGradientThreads);
    ++count;
  }
};

// Stores the shell sums of a column; those of 3D once the last plane that they have taps in is done.
template <class T, int K, int KD, int DZ>
struct Store {
  using C = Constants<T, K, KD>;
  using Held = float[C::kHeight][C::kFunctions][T::kChannels];

  Handover& handover;
  Held& held;
  unsigned char* column;  // in the first place
  const unsigned char* task;
  float scale;
  unsigned char* to;

  // Whether planes nearer or farther than DZ have taps of the shell at this squared distance.
  static constexpr bool elsewhere(int square, int from, int to) {
    for (int dz = from; dz < to; ++dz)
      for (int dy = 0; dy <= K / 2; ++dy)
        for (int dx = 0; dx <= K / 2; ++dx)
          if (dz * dz + dy * dy + dx * dx == square && Ball<K, KD>::inside(dz, dy, dx)) return true;
    return false;
  }
  static constexpr bool before(int square) { return elsewhere(square, 0, DZ); }
  static constexpr bool after(int square) { return elsewhere(square, DZ + 1, KD / 2 + 1); }

  __device__ __forceinline__ bool whole() const { return true; }

  template <int ROW>
  __device__ __forceinline__ void begin() {
    if constexpr (ROW % C::kRows == 0) {
      if constexpr (DZ == 0) handover.wait();
      to = column + handover.place() * C::kPartBytes;
      if constexpr (std::is_same_v<T, Float16>) scale = load_shared<Task>(task).scale;
    }
  }

  template <int SQUARE>
  __device__ __forceinline__ void radius() {}

  template <int SQUARE, int ROW>
  __device__ __forceinline__ void add(const float (&sum)[T::kChannels]) {
    constexpr int square = SQUARE + DZ * DZ, shell = Ball<K, KD>::shell(square);
    float total[T::kChannels];
#pragma unroll
    for (int j = 0; j < T::kChannels; ++j) {
      total[j] = sum[j];
      if constexpr (before(square)) total[j] += held[ROW][shell][j];
      if constexpr (after(square)) held[ROW][shell][j] = total[j];
      if constexpr (std::is_same_v<T, Float16>) total[j] *= scale;
    }
    if constexpr (!after(square)) {
      const int column = static_cast<int>(threadIdx.x) % kGroupThreads / kWords, word = threadIdx.x % kWords;
      store_shared<uint32_t>(to + ring_offset<C::kFunctions>(column, shell, word / 4) + word % 4 * 4 +
                                 ROW % C::kRows * kTileWidth * ring_pitch(C::kFunctions) * kPixelBytes,
                             T::pack(total));
    }
  }

  template <int ROW>
  __device__ __forceinline__ void end() {
    if constexpr (DZ == KD / 2 && (ROW + C::kTogether) % C::kRows == 0) handover.done();
  }
};

// Shell sums of kernels of any size: kTableShells of them, from the block's first one on.
template <class T>
__device__ __forceinline__ void store_by_table(const GradientParams& p, Handover& handover, const unsigned char* halo,
                                               const unsigned char* pixels, unsigned char* rings, int first_shell,
                                               float scale, int thread) {
  using C = Constants<T, 0, 0>;
  const int word = thread % kWords, slot = thread / kWords;
  const int* const starts = p.tables + p.starts;
  const int* const taps = p.tables + p.taps;
#pragma unroll 1
  for (int part = 0; part < C::kParts; ++part) {
    const unsigned char* from[C::kRows];
#pragma unroll
    for (int r = 0; r < C::kRows; ++r)
      from[r] = halo + load_shared<int>(pixels + 4 * (part * kPartPixels + slot + kTileWidth * r)) + 4 * word;
    handover.wait();
    unsigned char* const to = rings + handover.place() * C::kPartBytes;
#pragma unroll 1
    for (int i = 0; i < kTableShells; ++i) {
      const int shell = first_shell + i;
      float sum[C::kRows][T::kChannels] = {};
      if (shell < p.shells)
        for (int tap = starts[shell]; tap < starts[shell + 1]; ++tap) {
          const int offset = taps[tap];
#pragma unroll
          for (int r = 0; r < C::kRows; ++r) {
            const uint32_t value = load_shared<uint32_t>(from[r] + offset);
            static_for<T::kChannels>([&](auto j) { sum[r][j] += T::template unpack<j>(value); });
          }
        }
#pragma unroll
      for (int r = 0; r < C::kRows; ++r) {
#pragma unroll
        for (int j = 0; j < T::kChannels; ++j) sum[r][j] *= scale;
        store_shared<uint32_t>(to + ring_offset<kTableShells>(slot + kTileWidth * r, i, word / 4) + word % 4 * 4,
                               T::pack(sum[r]));
      }
    }
    handover.done();
  }
}

template <class T, int K, int KD>
__device__ __forceinline__ void gather(const GradientParams& p, unsigned char* memory, int thread) {
  using C = Constants<T, K, KD>;
  constexpr int kItem = sizeof(typename T::Scalar), kSteps = KD / 2 + 1;
  unsigned char* const table = memory + p.gather_at;
  const Task task = load_task(p, memory);
  const int first_channel = task.chunk_block * C::kChunks * C::kChannels;
  const unsigned char* tile_data = nullptr;
  const Places places{memory + p.places_at + 2 * kPlaceBytes};
  const auto begin_tile = [&](int tile) {
    const Place at = places.at(p, tile, thread == 0);
    make_gather_table<kGroupThreads, KD, C::kHaloHeight, C::kHaloWidth>(p, at, table, thread);
    tile_data = static_cast<const unsigned char*>(p.x) + (at.base + first_channel * p.x_strides[1]) * kItem;
    barrier_sync(kHalo, kGroupThreads);
  };
  const auto load = [&](int chunk, int step, int buffer) {
    const int64_t channel = p.x_strides[1] * kItem;
    const Source source{tile_data + chunk * C::kChannels * channel, channel,
                        p.channels - first_channel - chunk * C::kChannels, p.plane, p.loader};
    unsigned char* const to = memory + buffer * p.halo_bytes;
    if constexpr (K > 0)
      Shells<T, K, KD, C::kHeight>::load(source, step, table, to, thread);
    else
      load_pixels<T, false>(source, table, to, thread);
    commit_copies();
  };
  Handover handover;
  int buffer = 0;
  if (thread == 0) places.begin(p, task);
  barrier_sync(kHalo, kGroupThreads);
  if (task.tiles > 0) {
    begin_tile(0);
    load(0, 0, 0);
  }
  for (int tile = 0; tile < task.tiles; ++tile) {
#pragma unroll 1
    for (int chunk = 0; chunk < task.chunks; ++chunk) {
      float held[C::kHeight][C::kFunctions][T::kChannels];
      static_for<kSteps>([&](auto dz) {
        wait_copies<0>();
        // the halo is here, nobody reads the other buffer any more, and the table has been read
        barrier_sync(kHalo, kGroupThreads);
        if (dz < kSteps - 1) {
          load(chunk, dz + 1, buffer ^ 1);
        } else if (chunk + 1 < task.chunks) {
          load(chunk + 1, 0, buffer ^ 1);
        } else if (tile + 1 < task.tiles) {
          begin_tile(tile + 1);
          load(0, 0, buffer ^ 1);
        }
        const unsigned char* const halo = memory + buffer * p.halo_bytes;
        if constexpr (K > 0) {
          Store<T, K, KD, dz> sink{handover, held, memory + p.ring_at, memory + p.task_at, 1.0f, nullptr};
          Shells<T, K, KD, C::kHeight>::template walk<dz, (dz > 0 ? 2 : 1), C::kTogether>(sink, halo, thread);
        } else {
          store_by_table<T>(p, handover, halo, memory + p.pixel_at, memory + p.ring_at, task.pass * kTableShells,
                            load_task(p, memory).scale, thread);
        }
        buffer ^= 1;
      });
    }
  }
}

// ---- eight warps: the product ---------------------------------------------------------------------------------------

// What one of the warps multiplies: 32 outputs, or 16 of full float32, whose operands take twice the registers, by all
// shells of 8 channels.  Half types have twice 8 channels.  Where there are more warps than that, they share pixels.
struct Share {
  int output, half, pixel_split, first_step, steps;

  template <class C>
  static __device__ __forceinline__ Share of(const GradientParams& p, unsigned warp) {
    constexpr unsigned kWays = kMultiplyThreads / 32 / C::kHalves;
    const unsigned along_outputs = kWays >> p.pixel_split_bits, way = warp % kWays;
    Share share;
    share.output = (way & (along_outputs - 1)) * C::kMatrices * 16;
    share.half = warp / kWays;
    share.pixel_split = way * (1 << p.pixel_split_bits) / kWays;
    share.steps = C::kPartSteps >> p.pixel_split_bits;
    share.first_step = share.pixel_split * share.steps;
    return share;
  }
};

template <class T, int K, int KD>
struct Products {
  using C = Constants<T, K, KD>;
  float sums[C::kChunks][C::kMatrices][C::kFunctions][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < C::kMatrices; ++m)
#pragma unroll
      for (int c = 0; c < C::kChunks; ++c)
#pragma unroll
        for (int f = 0; f < C::kFunctions; ++f)
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[c][m][f][j] = 0.0f;
  }

  // A part of one chunk.  grad: pieces of 32 bytes of outputs, kPartPixels pixels each.
  template <int CHUNK>
  __device__ __forceinline__ void add(const unsigned char* grad, const unsigned char* rings, const Share& share,
                                      unsigned lane) {
#pragma unroll 1
    for (int step = share.first_step; step < share.first_step + share.steps; ++step) {
      const int first = step * C::kDepth;
      uint32_t a[C::kMatrices][4];
#pragma unroll
      for (int m = 0; m < C::kMatrices; ++m) load_grad<true>(a[m], piece_of(grad, share, m), first, lane);
#pragma unroll
      for (int f = 0; f < C::kFunctions; f += 2) {
        uint32_t b[4];
        load_shells(b, rings, first, f, share.half, lane);
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (f + i < C::kFunctions)
#pragma unroll
            for (int m = 0; m < C::kMatrices; ++m) T::multiply(sums[CHUNK][m][f + i], a[m], b[2 * i], b[2 * i + 1]);
      }
    }
  }

  // The m-th 16 outputs.
  static __device__ __forceinline__ const unsigned char* piece_of(const unsigned char* grad, const Share& share,
                                                                  int m) {
    return grad + (share.output / 16 + m) * (2 / C::kHalves) * kPartPixels * kPixelBytes;
  }

  // 16 outputs by kDepth pixels from `first` on, outputs as rows.
  // ROUNDED: float32 as the matrix units take it.
  template <bool ROUNDED>
  static __device__ __forceinline__ void load_grad(uint32_t (&a)[4], const unsigned char* piece, int first,
                                                   unsigned lane) {
    if constexpr (C::kHalves == 2) {
      const int pixel = lane / 16 * 8 + lane % 8;
      load_matrices_transposed(a, piece + first * kPixelBytes + pixel_offset<true>(pixel, lane / 8 % 2));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int output = lane / 4, pixel = i / 2 * 4 + lane % 4;
        const unsigned char* const at = piece + (i % 2 * kPartPixels + first) * kPixelBytes +
                                        pixel_offset<true>(pixel, output / 4) + output % 4 * 4;
        const float value = load_shared<float>(at);
        a[i] = ROUNDED ? T::pack({value}) : __float_as_uint(value);
      }
    }
  }

  // Two shells, kDepth pixels by 8 channels each.
  static __device__ __forceinline__ void load_shells(uint32_t (&b)[4], const unsigned char* rings, int first, int f,
                                                     int half, unsigned lane) {
    constexpr int kLast = C::kFunctions - 1, kPitch = ring_pitch(C::kFunctions);
    static_assert(kPitch % 2 == 1);         // shells are kPixelBytes apart
    rings += first * kPitch * kPixelBytes;  // `first` is a multiple of 8, after which places repeat
    if constexpr (C::kHalves == 2) {
      const int pixel = lane / 8 % 2 * 8 + lane % 8;
      load_matrices_transposed(
          b, rings + ring_offset<C::kFunctions>(pixel, f, half) + (f < kLast ? lane / 16 * kPixelBytes : 0));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int channel = lane / 4, pixel = i % 2 * 4 + lane % 4;
        if (f + i / 2 <= kLast)
          b[i] = load_shared<uint32_t>(rings + ring_offset<C::kFunctions>(pixel, 0, channel / 4) + channel % 4 * 4 +
                                       (f + i / 2) * kPixelBytes);
      }
    }
  }

  // Adds a part's sums over pixels to those of the warp's outputs in shared memory.
  static __device__ __forceinline__ void add_bias(const unsigned char* grad, unsigned char* bias, const Share& share,
                                                  unsigned lane) {
    float sums[C::kMatrices][2] = {};
#pragma unroll 1
    for (int step = share.first_step; step < share.first_step + share.steps; ++step)
#pragma unroll
      for (int m = 0; m < C::kMatrices; ++m) {
        uint32_t a[4];
        load_grad<false>(a, piece_of(grad, share, m), step * C::kDepth, lane);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          static_for<T::kChannels>([&](auto j) { sums[m][i % 2] += T::template unpack<j>(a[i]); });
      }
#pragma unroll
    for (int m = 0; m < 2 * C::kMatrices; ++m) {
      float sum = sums[m / 2][m % 2];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      unsigned char* const at = bias + 4 * (m * 8 + lane / 4);
      if (lane % 4 == 0) store_shared<float>(at, load_shared<float>(at) + sum);
    }
  }

  __device__ __forceinline__ bool is_finite() const {
    bool finite = true;
#pragma unroll
    for (int c = 0; c < C::kChunks; ++c)
#pragma unroll
      for (int m = 0; m < C::kMatrices; ++m)
#pragma unroll
        for (int f = 0; f < C::kFunctions; ++f)
#pragma unroll
          for (int j = 0; j < 4; ++j) finite = finite && fabsf(sums[c][m][f][j]) < INFINITY;
    return finite;
  }
};

// Bytes from a tile's first output pixel to each of its others, kOutside for those that don't exist; ahead of them the
// place of the first one in the tensor.
template <class C>
__device__ __forceinline__ void make_grad_table(const GradientParams& p, const Place& at, unsigned char* table,
                                                int thread) {
  if (thread >= C::kParts * kPartPixels) return;
  const bool known = C::kHaloWidth > 0;
  const int tile[3] = {known ? 1 : p.tile[0], known ? C::kHeight : p.tile[1], known ? kTileWidth : p.tile[2]};
  unsigned rest = thread;
  int64_t offset = 0;
  bool inside = true;
  for (int axis = 2; axis >= 0; --axis) {
    const int place = at.first[axis] + take(rest, tile[axis]);
    inside = inside && p.classes[axis] * place + at.residue[axis] < p.out_size[axis];
    offset += p.classes[axis] * (place - at.first[axis]) * p.grad_strides[2 + axis];
  }
  store_shared<unsigned>(table + kGradTableHead + 4 * thread,
                         inside && rest == 0 ? static_cast<unsigned>(offset * p.item) : kOutside);
  if (thread > 0) return;
  int64_t base = at.image * p.grad_strides[0];
  base += (int64_t{at.group} * p.outputs + at.out_block * p.block_outputs) * p.grad_strides[1];
  for (int axis = 0; axis < 3; ++axis)
    base += (p.classes[axis] * at.first[axis] + at.residue[axis]) * p.grad_strides[2 + axis];
  store_shared<int64_t>(table, base * p.item);
}

// What is needed once a part is made anew from `p`, for the same reason.
template <class T, int K, int KD>
__device__ __forceinline__ void multiply(const GradientParams& p, unsigned char* memory, Products<T, K, KD>& products) {
  using C = Constants<T, K, KD>;
  const auto make_table = [&](int tile) {
    const int thread = thread_anew();
    if (tile < load_task(p, memory).tiles)
      make_grad_table<C>(p, Places{memory + p.places_at}.at(p, tile, thread == 0),
                         memory + p.grad_table_at + tile % 2 * kGradTableBytes, thread);
  };
  const auto slot_of = [&](int part) {
    return memory + p.grad_at + part % C::kSlots * (p.block_outputs * p.item * kPartPixels);
  };
  const auto load = [&](int part) {
    const unsigned thread = thread_anew(), group = thread / kGroupThreads;
    if (part < load_task(p, memory).tiles * C::kParts) {
      constexpr int kPiece = kPartPixels * kPixelBytes;  // of one chunk of outputs; the groups take every other one
      const unsigned char* table = memory + p.grad_table_at + part / C::kParts % 2 * kGradTableBytes;
      const unsigned char* data = static_cast<const unsigned char*>(p.grad) + load_shared<int64_t>(table);
      table += kGradTableHead + part % C::kParts * kPartPixels * 4;
      unsigned char* to = slot_of(part) + group * kPiece;
      const int outputs = p.outputs - load_task(p, memory).out_block * p.block_outputs;
      if (p.grad_loader == Loader::kVector && outputs >= p.block_outputs) {
        // one copy of each piece for every thread
        const unsigned pixel = thread % kGroupThreads / 2, half = thread % 2;
        const unsigned offset = load_shared<unsigned>(table + 4 * pixel);
        data += offset + group * kPixelBytes + half * 16;
        to += pixel_offset<true>(pixel, half);
#pragma unroll 1
        for (int left = p.block_outputs - group * C::kChannels; left > 0; left -= 2 * C::kChannels) {
          if (offset != kOutside)
            copy_async<16>(to, data);
          else
            store_shared<Float4>(to, Float4{});
          data += 2 * kPixelBytes;
          to += 2 * kPiece;
        }
      } else {
        const int64_t channel = p.grad_strides[1] * p.item;
#pragma unroll 1
        for (int first = group * C::kChannels; first < p.block_outputs; first += 2 * C::kChannels) {
          const Source source{data + first * channel, channel, outputs - first, kPartPixels, p.grad_loader};
          load_pixels<T, true>(source, table, to, thread % kGroupThreads);
          to += 2 * kPiece;
        }
      }
    }
    commit_copies();
  };
  if (thread_anew() == 0) Places{memory + p.places_at}.begin(p, load_task(p, memory));
  for (int tile = 0; tile < C::kTablesAhead; ++tile) {
    barrier_sync(kGrad, kMultiplyThreads);
    make_table(tile);
  }
  barrier_sync(kGrad, kMultiplyThreads);
  for (int i = 0; i < C::kAhead; ++i) load(i);
#pragma unroll 1
  for (int tile = 0; tile < load_task(p, memory).tiles; ++tile)
    static_for<C::kChunks>([&](auto chunk) {
      if (chunk < load_task(p, memory).chunks)
#pragma unroll 1
        for (int i = 0; i < C::kParts; ++i) {
          const int part = tile * C::kParts + i;
          if (chunk == 0) {
            wait_copies<C::kAhead - 1>();
            // the part is here, and nobody reads the one that is overwritten next, nor the table
            barrier_sync(kGrad, kMultiplyThreads);
            if (i == 0) make_table(tile + C::kTablesAhead);
            load(part + C::kAhead);
          }
          const Task task = load_task(p, memory);
          const int handed = (tile * task.chunks + chunk) * C::kParts + i, place = handed % 2;
          barrier_sync(kFull + place, kGradientThreads);
          const unsigned thread = thread_anew();
          const Share share = Share::of<C>(p, thread / 32);
          if (share.output < p.block_outputs) {
            products.template add<chunk>(slot_of(part), memory + p.ring_at + place * C::kPartBytes, share, thread % 32);
            if (chunk == 0 && p.wants_bias && task.sums_bias())
              products.add_bias(slot_of(part), memory + p.bias_at + thread / 32 * 128, share, thread % 32);
          }
          if (handed + 2 < task.tiles * task.chunks * C::kParts) barrier_arrive(kFree + place, kGradientThreads);
        }
    });
}

template <class T, int K, int KD>
__device__ __forceinline__ void store(const GradientParams& p, const unsigned char* memory,
                                      const Products<T, K, KD>& products, int thread) {
  using C = Constants<T, K, KD>;
  const Task task = load_task(p, memory);
  const Share share = Share::of<C>(p, thread / 32);
  __syncwarp();  // its lanes' sums for the bias
  const int lane = thread % 32;
  const int64_t copy = (int64_t{task.split} << p.pixel_split_bits) + share.pixel_split;
  const int64_t unit = copy * p.groups + task.group;
  const int first = task.out_block * p.block_outputs, end = min(p.outputs, first + p.block_outputs);
  const int output = first + share.output + lane / 4;
  const int channel = task.chunk_block * C::kChunks * C::kChannels + share.half * 8 + lane % 4 * 2;
  const float back = 1.0f / task.scale;
  float* const sums = reinterpret_cast<float*>(p.workspace + p.sums);
  static_for<C::kChunks>([&](auto c) {
    if (c < task.chunks)
#pragma unroll
      for (int f = 0; f < C::kFunctions; ++f) {
        const int shell = task.pass * C::kFunctions + f;
#pragma unroll
        for (int m = 0; m < 2 * C::kMatrices; ++m) {
          const int o = output + m * 8;
          if (o >= end || shell >= p.shells) continue;
          float* const to =
              sums + ((unit * p.shells + shell) * p.outputs + o) * p.channel_pitch + channel + c * C::kChannels;
          const float* const from = &products.sums[c][m / 2][f][m % 2 * 2];
          *reinterpret_cast<Float2*>(to) = {from[0] * back, from[1] * back};
        }
      }
  });
  if (p.wants_bias && task.sums_bias() && share.half == 0 && lane < 16 * C::kMatrices && output - lane / 4 + lane < end)
    reinterpret_cast<float*>(p.workspace + p.bias_sums)[unit * p.outputs + output - lane / 4 + lane] =
        load_shared<float>(memory + p.bias_at + 4 * thread);
}

// Whether some thread of the block found sums that are not finite in the first attempt.
__device__ __forceinline__ bool try_again(const GradientParams& p, unsigned char* memory, bool finite) {
  Task task = load_task(p, memory);
  if (!__syncthreads_or(!finite) || task.scale != 1.0f) return false;
  task.scale = kShrink;
  if (threadIdx.x == 0) store_shared<Task>(memory + p.task_at, task);
  __syncthreads();
  return true;
}

// ---- kernel ---------------------------------------------------------------------------------------------------------

template <class T, int K, int KD>
__global__ void __launch_bounds__(kGradientThreads, 1) gradient(const __grid_constant__ GradientParams p) {
  unsigned char* const memory = shared_memory();
  if (blockIdx.x == 0 && threadIdx.x == 0) *reinterpret_cast<unsigned*>(p.workspace + p.counter) = 0;
  if (K == 0 && threadIdx.x < kPixels) make_pixel_table(p, memory + p.pixel_at, threadIdx.x);
  if (threadIdx.x == 0) store_shared<Task>(memory + p.task_at, task_of<Constants<T, K, KD>>(p, blockIdx.x));
  __syncthreads();

  // float16 ends at 65504, which shell sums may leave: once more, then, with smaller ones.  Small values keep all their
  // digits in the first attempt.
  constexpr bool kMayOverflow = std::is_same_v<T, Float16>;
  if (threadIdx.x >= kMultiplyThreads) {
    do {
      gather<T, K, KD>(p, memory, static_cast<int>(threadIdx.x) - kMultiplyThreads);
    } while (kMayOverflow && try_again(p, memory, true));
    return;
  }
  Products<T, K, KD> products;
  do {
    products.clear();
    store_shared<float>(memory + p.bias_at + 4 * threadIdx.x, 0.0f);
    __syncwarp();  // each warp adds to its own
    multiply<T, K, KD>(p, memory, products);
  } while (kMayOverflow && try_again(p, memory, products.is_finite()));
  store<T, K, KD>(p, memory, products, threadIdx.x);
}

Kernel<GradientParams> kernel_of(Format format) {
  if (format == Format::kFloat16) return gradient<Float16, RADCONV_K, RADCONV_KD>;
  if (format == Format::kBFloat16) return gradient<BFloat16, RADCONV_K, RADCONV_KD>;
  if (format == Format::kTF32) return gradient<TF32, RADCONV_K, RADCONV_KD>;
  return gradient<Float32, RADCONV_K, RADCONV_KD>;
}

using Gradients = Launcher<GradientParams, kernel_of, kGradientThreads>;

}  // namespace

const SizedKernels<GradientParams> RADCONV_NAME(gradient, RADCONV_K, RADCONV_KD) = {
    RADCONV_K, RADCONV_KD, Gradients::prepare, Gradients::launch};

}  // namespace radconv::cuda
