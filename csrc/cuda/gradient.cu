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
// What bounds it, by counting: half types on sm_90 the matrix units from k = 5 on, at k = 3 issue slots.
//
// This file is compiled once per kernel size: RADCONV_K wide and high, RADCONV_KD deep, 0 for any.

#include "cuda/gradient.h"

#include "cuda/halo.cuh"
#include "cuda/launches.h"
#include "cuda/primitives.cuh"
#include "cuda/rings.cuh"

namespace radconv::cuda {
namespace {

// Named barriers; two of each of the last two, one per place of a part.
enum : int { kHalo = 1, kGrad = 2, kFull = 3, kFree = 5 };

constexpr float kShrink = 1.0f / 1024;  // of float16 shells in a second attempt

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
  static constexpr int kFunctions = kTableShells, kChunks = 1, kParts = 2, kSlots = 2;
};

template <class T, int K, int KD>
struct Constants : Size<K, KD> {
  using Base = Size<K, KD>;
  static constexpr int kAhead = Base::kSlots / 2;                          // parts that are loaded ahead
  static constexpr int kTablesAhead = Base::kParts / kAhead >= 2 ? 1 : 2;  // tiles whose table is made ahead
  static constexpr int kChannels = kWords * T::kChannels;                  // of a chunk
  static constexpr int kHalves = T::kChannels;                             // of a chunk, 8 channels each
  static constexpr int kCopies = 2 / kHalves;                              // parts of the sums that a block makes
  static constexpr int kRows = kPartPixels / kTileWidth;                   // of a part
  static constexpr int kHeight = kRows * Base::kParts;                     // of a tile
  static constexpr int kPartBytes = kPartPixels * ring_pitch(Base::kFunctions) * kPixelBytes;
  static constexpr int kTogether = T::kChannels * K < 14 ? 4 : KD > 1 ? 1 : 2;  // rows
};

// What one block works on.
struct Task {
  int group, out_block, chunk_block, pass, split, first_tile, tiles;

  __device__ __forceinline__ explicit Task(const GradientParams& p) {
    unsigned rest = blockIdx.x;
    chunk_block = take(rest, p.chunk_blocks);
    pass = take(rest, p.passes);
    out_block = take(rest, p.out_blocks);
    group = take(rest, p.groups);
    split = static_cast<int>(rest);
    first_tile = static_cast<int>(int64_t{p.all_tiles} * split / p.splits);
    tiles = static_cast<int>(int64_t{p.all_tiles} * (split + 1) / p.splits) - first_tile;
  }

  // `tile` counts the block's own.
  __device__ __forceinline__ Place place(const GradientParams& p, int tile) const {
    Place at;
    at.out_block = out_block;
    at.group = group;
    place_tile(p, at, first_tile + tile);
    return at;
  }

  template <class C>
  __device__ __forceinline__ int first_channel() const {
    return chunk_block * C::kChunks * C::kChannels;
  }

  // How many chunks of channels there are.
  template <class C>
  __device__ __forceinline__ int chunks(const GradientParams& p) const {
    return min(C::kChunks, (p.channels - first_channel<C>() + C::kChannels - 1) / C::kChannels);
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
__device__ __forceinline__ void gather(const GradientParams& p, unsigned char* memory, const Task& task, float scale,
                                       int thread) {
  using C = Constants<T, K, KD>;
  constexpr int kItem = sizeof(typename T::Scalar), kSteps = KD / 2 + 1;
  unsigned char* const table = memory + p.gather_at;
  const int first_channel = task.first_channel<C>(), chunks = task.chunks<C>(p);
  const unsigned char* tile_data = nullptr;
  const auto begin_tile = [&](int tile) {
    const Place at = task.place(p, tile);
    make_gather_table<kGroupThreads>(p, at, table, thread);
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
  if (task.tiles > 0) {
    begin_tile(0);
    load(0, 0, 0);
  }
  for (int tile = 0; tile < task.tiles; ++tile) {
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      float held[C::kHeight][C::kFunctions][T::kChannels];
      static_for<kSteps>([&](auto dz) {
        wait_copies<0>();
        // the halo is here, nobody reads the other buffer any more, and the table has been read
        barrier_sync(kHalo, kGroupThreads);
        if (dz < kSteps - 1) {
          load(chunk, dz + 1, buffer ^ 1);
        } else if (chunk + 1 < chunks) {
          load(chunk + 1, 0, buffer ^ 1);
        } else if (tile + 1 < task.tiles) {
          begin_tile(tile + 1);
          load(0, 0, buffer ^ 1);
        }
        const unsigned char* const halo = memory + buffer * p.halo_bytes;
        if constexpr (K > 0) {
          Store<T, K, KD, dz> sink{handover, held, memory + p.ring_at, scale, nullptr};
          Shells<T, K, KD, C::kHeight>::template walk<dz, (dz > 0 ? 2 : 1), C::kTogether>(sink, halo, thread);
        } else {
          store_by_table<T>(p, handover, halo, memory + p.pixel_at, memory + p.ring_at, task.pass * kTableShells, scale,
                            thread);
        }
        buffer ^= 1;
      });
    }
  }
}

// ---- eight warps: the product ---------------------------------------------------------------------------------------

// What one of the warps multiplies: 32 outputs by all shells of 8 channels.  Four by two of them: of half types, the
// two have 8 channels each, else the same ones of half of the pixels; with at most 64 outputs, the four share pixels
// too.
struct Share {
  int output, second, pixel_split, first_step, end_step;

  __device__ __forceinline__ Share(const GradientParams& p, int warp) {
    const int along_outputs = 4 / p.pixel_splits;
    output = warp % along_outputs * 32;
    pixel_split = warp % 4 / along_outputs;
    second = warp / 4;
    first_step = pixel_split * along_outputs;
    end_step = first_step + along_outputs;
  }
};

template <class T, int K, int KD>
struct Products {
  using C = Constants<T, K, KD>;
  float sums[C::kChunks][2][C::kFunctions][4];
  float bias[2][2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      bias[m][0] = bias[m][1] = 0.0f;
#pragma unroll
      for (int c = 0; c < C::kChunks; ++c)
#pragma unroll
        for (int f = 0; f < C::kFunctions; ++f)
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[c][m][f][j] = 0.0f;
    }
  }

  // A part of one chunk.  grad: pieces of 32 bytes of outputs, kPartPixels pixels each.
  template <int CHUNK>
  __device__ __forceinline__ void add(const unsigned char* grad, const unsigned char* rings, bool wants_bias,
                                      const Share& share, int lane) {
    constexpr int kDepth = 32 / sizeof(typename T::Scalar);  // pixels of a matrix instruction
    constexpr int kPiece = kPartPixels * kPixelBytes;
    const int second = share.second;
    grad += share.output / 32 * (2 * C::kCopies) * kPiece;
#pragma unroll(C::kFunctions > 8 ? 1 : 2)
    for (int step = share.first_step; step < share.end_step; ++step) {
      const int first = (C::kHalves == 2 ? 0 : second * 32) + step * kDepth;
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) load_grad(a[m], grad + m * C::kCopies * kPiece, first, lane);
      if (CHUNK == 0 && wants_bias) add_bias(a);
#pragma unroll
      for (int f = 0; f < C::kFunctions; f += 2) {
        uint32_t b[4];
        load_shells(b, rings, first, f, second, lane);
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (f + i < C::kFunctions)
#pragma unroll
            for (int m = 0; m < 2; ++m) T::multiply(sums[CHUNK][m][f + i], a[m], b[2 * i], b[2 * i + 1]);
      }
    }
  }

  // 16 outputs by kDepth pixels from `first` on, outputs as rows.
  static __device__ __forceinline__ void load_grad(uint32_t (&a)[4], const unsigned char* piece, int first, int lane) {
    if constexpr (C::kHalves == 2) {
      const int pixel = first + lane / 16 * 8 + lane % 8;
      load_matrices_transposed(a, piece + pixel_offset<true>(pixel, lane / 8 % 2));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int output = lane / 4, pixel = first + i / 2 * 4 + lane % 4;
        const unsigned char* const at =
            piece + i % 2 * kPartPixels * kPixelBytes + pixel_offset<true>(pixel, output / 4) + output % 4 * 4;
        a[i] = T::pack({__uint_as_float(load_shared<uint32_t>(at))});
      }
    }
  }

  // Two shells, kDepth pixels by 8 channels each.
  static __device__ __forceinline__ void load_shells(uint32_t (&b)[4], const unsigned char* rings, int first, int f,
                                                     int second, int lane) {
    constexpr int kLast = C::kFunctions - 1;
    if constexpr (C::kHalves == 2) {
      const int pixel = first + lane / 8 % 2 * 8 + lane % 8;
      const unsigned char* const one = rings + ring_offset<C::kFunctions>(pixel, f, second);
      const unsigned char* const next = rings + ring_offset<C::kFunctions>(pixel, min(f + 1, kLast), second);
      load_matrices_transposed(b, lane < 16 ? one : next);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int channel = lane / 4, pixel = first + i % 2 * 4 + lane % 4;
        if (f + i / 2 <= kLast)
          b[i] = load_shared<uint32_t>(rings + ring_offset<C::kFunctions>(pixel, f + i / 2, channel / 4) +
                                       channel % 4 * 4);
      }
    }
  }

  __device__ __forceinline__ void add_bias(const uint32_t (&a)[2][4]) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        static_for<T::kChannels>([&](auto j) { bias[m][i % 2] += T::template unpack<j>(a[m][i]); });
  }

  __device__ __forceinline__ bool is_finite() const {
    bool finite = true;
#pragma unroll
    for (int c = 0; c < C::kChunks; ++c)
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int f = 0; f < C::kFunctions; ++f)
#pragma unroll
          for (int j = 0; j < 4; ++j) finite = finite && fabsf(sums[c][m][f][j]) < INFINITY;
    return finite;
  }
};

// Bytes from a tile's first output pixel to each of its others, kOutside for those that don't exist; ahead of them the
// place of the first one in the tensor.
__device__ __forceinline__ void make_grad_table(const GradientParams& p, const Task& task, int tile,
                                                unsigned char* table, int pixels, int thread) {
  if (thread >= pixels) return;
  const Place at = task.place(p, tile);
  unsigned rest = thread;
  int64_t offset = 0, base = at.image * p.grad_strides[0];
  base += (int64_t{at.group} * p.outputs + at.out_block * p.block_outputs) * p.grad_strides[1];
  bool inside = true;
  for (int axis = 2; axis >= 0; --axis) {
    const int first = p.classes[axis] * at.first[axis] + at.residue[axis];
    const int place = p.classes[axis] * take(rest, p.tile[axis]);
    inside = inside && first + place < p.out_size[axis];
    offset += place * p.grad_strides[2 + axis];
    base += first * p.grad_strides[2 + axis];
  }
  store_shared<unsigned>(table + kGradTableHead + 4 * thread,
                         inside && rest == 0 ? static_cast<unsigned>(offset * p.item) : kOutside);
  if (thread == 0) store_shared<int64_t>(table, base * p.item);
}

template <class T, int K, int KD>
__device__ __forceinline__ void multiply(const GradientParams& p, unsigned char* memory, const Task& task,
                                         Products<T, K, KD>& products, int thread) {
  using C = Constants<T, K, KD>;
  constexpr int kTilePixels = C::kParts * kPartPixels;
  const int parts = task.tiles * C::kParts, chunks = task.chunks<C>(p);
  const int outputs = min(p.block_outputs, p.outputs - task.out_block * p.block_outputs);
  const int slot_bytes = p.block_outputs * p.item * kPartPixels;
  const bool wants_bias = p.wants_bias && task.chunk_block == 0 && task.pass == 0;
  const auto make_table = [&](int tile) {
    if (tile < task.tiles)
      make_grad_table(p, task, tile, memory + p.grad_table_at + tile % 2 * kGradTableBytes, kTilePixels, thread);
  };
  const auto load = [&](int part) {
    if (part < parts) {
      const unsigned char* const table = memory + p.grad_table_at + part / C::kParts % 2 * kGradTableBytes;
      const unsigned char* const data = static_cast<const unsigned char*>(p.grad) + load_shared<int64_t>(table);
      const int64_t channel = p.grad_strides[1] * p.item;
      for (int piece = thread / kGroupThreads; piece * C::kChannels < p.block_outputs; piece += 2) {
        const int first = piece * C::kChannels;
        const Source source{data + first * channel, channel, outputs - first, kPartPixels, p.grad_loader};
        load_pixels<T, true>(source, table + kGradTableHead + part % C::kParts * kPartPixels * 4,
                             memory + p.grad_at + part % C::kSlots * slot_bytes + piece * kPartPixels * kPixelBytes,
                             thread % kGroupThreads);
      }
    }
    commit_copies();
  };
  make_table(0);
  if (C::kTablesAhead > 1) make_table(1);
  barrier_sync(kGrad, kMultiplyThreads);
  for (int i = 0; i < C::kAhead; ++i) load(i);
  int handed = 0;
  const int lane = thread % 32;
  const Share share(p, thread / 32);
  const bool works = share.output < outputs;
  for (int tile = 0; tile < task.tiles; ++tile)
    static_for<C::kChunks>([&](auto chunk) {
      if (chunk < chunks)
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
          const int place = handed % 2;
          barrier_sync(kFull + place, kGradientThreads);
          if (works)
            products.template add<chunk>(memory + p.grad_at + part % C::kSlots * slot_bytes,
                                         memory + p.ring_at + place * C::kPartBytes, wants_bias, share, lane);
          if (handed + 2 < parts * chunks) barrier_arrive(kFree + place, kGradientThreads);
          ++handed;
        }
    });
}

template <class T, int K, int KD>
__device__ __forceinline__ void store(const GradientParams& p, const Task& task, const Products<T, K, KD>& products,
                                      float scale, int thread) {
  using C = Constants<T, K, KD>;
  const Share share(p, thread / 32);
  const int lane = thread % 32, second = share.second;
  const int64_t copy =
      (int64_t{task.split} * p.pixel_splits + share.pixel_split) * C::kCopies + (C::kHalves == 2 ? 0 : second);
  const int64_t unit = copy * p.groups + task.group;
  const int first = task.out_block * p.block_outputs, end = min(p.outputs, first + p.block_outputs);
  const int output = first + share.output + lane / 4;
  const int channel = task.first_channel<C>() + (C::kHalves == 2 ? second * 8 : 0) + lane % 4 * 2;
  const int chunks = task.chunks<C>(p);
  const float back = 1.0f / scale;
  float* const sums = reinterpret_cast<float*>(p.workspace + p.sums);
  static_for<C::kChunks>([&](auto c) {
    if (c < chunks)
#pragma unroll
      for (int f = 0; f < C::kFunctions; ++f) {
        const int shell = task.pass * C::kFunctions + f;
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const int o = output + m * 8;
          if (o >= end || shell >= p.shells) continue;
          float* const to =
              sums + ((unit * p.shells + shell) * p.outputs + o) * p.channel_pitch + channel + c * C::kChannels;
          const float* const from = &products.sums[c][m / 2][f][m % 2 * 2];
          *reinterpret_cast<Float2*>(to) = {from[0] * back, from[1] * back};
        }
      }
  });
  if (!p.wants_bias || task.chunk_block != 0 || task.pass != 0) return;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    float sum = products.bias[m / 2][m % 2];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const int o = output + m * 8;
    if (o < end && lane % 4 == 0 && (second == 0 || C::kHalves == 1))
      reinterpret_cast<float*>(p.workspace + p.bias_sums)[unit * p.outputs + o] = sum;
  }
}

// ---- kernel ---------------------------------------------------------------------------------------------------------

template <class T, int K, int KD>
__global__ void __launch_bounds__(kGradientThreads, 1) gradient(const __grid_constant__ GradientParams p) {
  unsigned char* const memory = shared_memory();
  const Task task(p);
  if (blockIdx.x == 0 && threadIdx.x == 0) *reinterpret_cast<unsigned*>(p.workspace + p.counter) = 0;
  if (K == 0 && threadIdx.x < kPixels) {
    unsigned rest = threadIdx.x;
    int place[3];
    for (int axis = 2; axis >= 0; --axis) place[axis] = take(rest, p.tile[axis]) * p.stride[axis];
    const int pixel = (place[0] * p.halo[1] + place[1]) * p.halo[2] + place[2];
    store_shared<int>(memory + p.pixel_at + 4 * threadIdx.x, rest > 0 ? 0 : pixel * kPixelBytes);
  }
  __syncthreads();

  // float16 ends at 65504, which shell sums may leave: once more, then, with smaller ones.  Small values keep all their
  // digits in the first attempt.
  constexpr bool kMayOverflow = std::is_same_v<T, Float16>;
  float scale = 1.0f;
  if (threadIdx.x >= kMultiplyThreads) {
    const int thread = static_cast<int>(threadIdx.x) - kMultiplyThreads;
    while (true) {
      gather<T, K, KD>(p, memory, task, scale, thread);
      if (!kMayOverflow || !__syncthreads_or(false) || scale != 1.0f) return;
      scale = kShrink;
    }
  }
  Products<T, K, KD> products;
  while (true) {
    products.clear();
    multiply<T, K, KD>(p, memory, task, products, threadIdx.x);
    if (!kMayOverflow || !__syncthreads_or(!products.is_finite()) || scale != 1.0f) break;
    scale = kShrink;
  }
  store<T, K, KD>(p, task, products, scale, threadIdx.x);
}

using Kernel = void (*)(GradientParams);

Kernel kernel_of(Format format) {
  if (format == Format::kFloat16) return gradient<Float16, RADCONV_K, RADCONV_KD>;
  if (format == Format::kBFloat16) return gradient<BFloat16, RADCONV_K, RADCONV_KD>;
  if (format == Format::kTF32) return gradient<TF32, RADCONV_K, RADCONV_KD>;
  return gradient<Float32, RADCONV_K, RADCONV_KD>;
}

cudaError_t prepare(Format format, int shared) { return prepare_kernel(kernel_of(format), shared); }

cudaError_t launch(Format format, unsigned blocks, int shared, cudaStream_t stream, const GradientParams& params) {
  return launch_kernel(kernel_of(format), blocks, kGradientThreads, shared, stream, params);
}

}  // namespace

const SizedKernels<GradientParams> RADCONV_NAME(gradient, RADCONV_K, RADCONV_KD) = {RADCONV_K, RADCONV_KD, prepare,
                                                                                    launch};

}  // namespace radconv::cuda
