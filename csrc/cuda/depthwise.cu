// Depthwise convolution: one input and one output channel a group.  Forward, which is the gradient by the input too,
// and the sums over pixels of the weight gradient.
//
// 128 threads take a tile of 8 x 16 pixels and 32 bytes of channels of each (16 halves or 8 floats) at a time.  A
// thread owns a column and a word of channels, and slides down the rows (Shells in rings.cuh).  In 3D the block marches
// along the depth: planar sums of one input plane meet the values of every output plane that they reach, whose sums
// stay in registers and move on by one plane after the other.  2D is a march over one plane.  Halos come by
// asynchronous copies, one plane ahead.
//
// Forward: a block keeps its tile, and does several chunks of channels one after the other.  Weight gradient: it keeps
// its chunk, and sums over several tiles; blocks that share a chunk leave their sums beside each other.
//
// What bounds it, by counting: issue slots from k = 5 on, memory below; with contiguous half types, whose pixels come
// and go one element at a time, the loads and stores of shared memory and L2.
//
// This file is compiled once per kernel size: RADCONV_K wide and high, RADCONV_KD deep, 0 for any.

#include "cuda/depthwise.h"

#include "cuda/halo.cuh"
#include "cuda/launcher.cuh"
#include "cuda/primitives.cuh"
#include "cuda/rings.cuh"

namespace radconv::cuda {
namespace {

// ---- places ---------------------------------------------------------------------------------------------------------

// A tile, kept in shared memory.
struct Spot : Place {
  int left[3];  // outputs of its class that there are from the first one on
};

static_assert(sizeof(Spot) <= kSpotBytes);

__device__ __forceinline__ void store_spot(const DepthwiseGeometry& p, unsigned tile, unsigned char* to) {
  Spot at;
  at.group = at.out_block = 0;
  place_tile(p, at, tile);
  for (int axis = 0; axis < 3; ++axis)
    at.left[axis] = (p.out_size[axis] - at.residue[axis] + p.classes[axis] - 1) / p.classes[axis] - at.first[axis];
  store_shared<Spot>(to, at);
}

// Planes of the halo of a tile, which may have none of its own.
template <int KD>
__device__ __forceinline__ int planes_of(const DepthwiseGeometry& p, const unsigned char* spot) {
  if constexpr (KD <= 1)
    return 1;
  else
    return max(1, min(p.tile[0], load_shared<Spot>(spot).left[0])) + KD - 1;
}

// Output `place` of a tile along an axis, in bytes from the tensor's first.
__device__ __forceinline__ int64_t output_offset(const DepthwiseGeometry& p, const Spot& at, int axis, int place) {
  return (at.residue[axis] + int64_t{p.classes[axis]} * (at.first[axis] + place)) * p.out.strides[2 + axis];
}

// Where the gather table of one plane, or with kernels of any size of the whole halo, points.
template <class T, int K, int KD>
__device__ __forceinline__ void make_table(const DepthwiseGeometry& p, const Place& at, unsigned char* table,
                                           int thread) {
  if constexpr (K == 0) {
    make_gather_table<kGroupThreads>(p, at, table, thread);
  } else {
    using S = Shells<T, K, KD>;
    for (int pixel = thread; pixel < S::kPlane; pixel += kGroupThreads) {
      int64_t offset = 0;
      bool inside = locate(p, at, 1, pixel / S::kHaloWidth, offset);
      inside &= locate(p, at, 2, pixel % S::kHaloWidth, offset);
      store_shared<unsigned>(table + 4 * pixel, inside ? static_cast<unsigned>(offset * p.item) : kOutside);
    }
  }
}

// Whether a plane of the halo lies in x; adds how far from where the gather table counts from.  Kernels of any size
// have all planes in that table, and flat ones have no other.
template <int KD>
__device__ __forceinline__ bool locate_plane(const DepthwiseGeometry& p, const Place& at, int plane, int64_t& offset) {
  if constexpr (KD <= 1)
    return true;
  else
    return locate(p, at, 0, plane, offset);
}

// One plane of the halo (all of it in kernels of any size) of a chunk that begins at `channel`.
template <class T, int KD>
__device__ __forceinline__ void load_plane(const DepthwiseGeometry& p, const Place& at, int channel, int plane,
                                           const unsigned char* table, unsigned char* to, int thread) {
  constexpr int kItem = sizeof(typename T::Scalar);
  int64_t offset = at.base + channel * p.x_strides[1];
  if (!locate_plane<KD>(p, at, plane, offset)) return;
  load_pixels<T, false>({static_cast<const unsigned char*>(p.x) + offset * kItem, p.x_strides[1] * kItem,
                         p.channels - channel, p.plane, p.loader},
                        table, to, thread);
}

// ---- words of channels of tensors like the output -------------------------------------------------------------------

// `left` channels are there from the first one on.
template <class T>
__device__ __forceinline__ void store_word(const OutputLayout& out, unsigned char* to, int left,
                                           const float (&values)[T::kChannels]) {
  const uint32_t word = T::pack(values);
  if (T::kChannels == 1 || (out.words && left > 1)) {
    *reinterpret_cast<uint32_t*>(to) = word;
  } else {
    *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(word);
    if (left > 1) *reinterpret_cast<uint16_t*>(to + out.strides[1]) = static_cast<uint16_t>(word >> 16);
  }
}

template <class T>
__device__ __forceinline__ uint32_t load_word(const OutputLayout& out, const unsigned char* from, int left) {
  if (T::kChannels == 1 || (out.words && left > 1)) return *reinterpret_cast<const uint32_t*>(from);
  uint32_t word = *reinterpret_cast<const uint16_t*>(from);
  if (left > 1) word |= uint32_t{*reinterpret_cast<const uint16_t*>(from + out.strides[1])} << 16;
  return word;
}

// A thread's pixels in one plane of a tensor: a column of the tile, a word of channels.
template <class T, class Byte>
struct Column {
  Byte* at;  // first row
  int step;  // bytes to the next one
  int rows, left;

  __device__ __forceinline__ void place(const DepthwiseGeometry& p, Byte* data, const Spot& spot, int channel,
                                        int column) {
    left = p.channels - channel;
    rows = left > 0 && column < spot.left[2] && spot.left[0] > 0 ? spot.left[1] : 0;
    step = static_cast<int>(p.classes[1] * p.out.strides[3]);
    at = data + spot.image * p.out.strides[0] + channel * p.out.strides[1] + output_offset(p, spot, 0, 0) +
         output_offset(p, spot, 1, 0) + output_offset(p, spot, 2, column);
  }
  __device__ __forceinline__ void move_planes(const DepthwiseGeometry& p, int planes) {
    at += planes * int64_t{p.classes[0]} * p.out.strides[2];
  }
  __device__ __forceinline__ void next_chunk(const DepthwiseGeometry& p) {
    constexpr int kChunk = kWords * T::kChannels;
    at += kChunk * p.out.strides[1];
    left -= kChunk;
    if (left <= 0) rows = 0;
  }

  template <int ROW>
  __device__ __forceinline__ void store(const DepthwiseGeometry& p, const float (&values)[T::kChannels]) const {
    if (ROW < rows) store_word<T>(p.out, at + int64_t{ROW} * step, left, values);
  }
  template <int ROW>
  __device__ __forceinline__ uint32_t load(const DepthwiseGeometry& p) const {
    return ROW < rows ? load_word<T>(p.out, at + int64_t{ROW} * step, left) : 0;
  }
};

// ---- the march ------------------------------------------------------------------------------------------------------

// Planes of a task's items (chunks or tiles), one after the other.  task.load(item, plane, to) issues copies, to all
// threads after a barrier; while task.work(item, plane, halo) goes on, the next plane's are under way.
template <class Task>
__device__ __forceinline__ void march(const DepthwiseGeometry& p, Task& task, unsigned char* halos) {
  int item = 0, plane = 0, buffer = 0;
  const auto load = [&](int next_item, int next_plane, int to) {
    task.load(next_item, next_plane, halos + to * p.buffer_bytes);
    commit_copies();
  };
  load(0, 0, 0);
  while (true) {
    const bool last = plane + 1 == task.planes(item);
    const int next_item = item + last, next_plane = last ? 0 : plane + 1;
    const bool more = next_item < task.items;
    wait_copies<0>();
    __syncthreads();  // the halo is here, and nobody reads the other buffer any more
    if (more && p.buffers == 2) load(next_item, next_plane, buffer ^ 1);
    task.work(item, plane, halos + buffer * p.buffer_bytes);
    if (!more) break;
    if (p.buffers == 2) {
      buffer ^= 1;
    } else {
      __syncthreads();  // before the only buffer is overwritten
      load(next_item, next_plane, 0);
    }
    item = next_item;
    plane = next_plane;
  }
}

// ---- kernels of any size: sums by a table of taps -------------------------------------------------------------------

struct alignas(kPixelPlaceBytes) PixelPlace {
  int64_t out;  // bytes from the image's first output, -1 where there is none
  int halo;     // bytes to the pixel's first tap
};

// Pixels thread / kWords + kSlots * i of a tile, a word of channels of each, and the taps of their residue class.
template <class T>
struct TablePixels {
  static constexpr int kChannels = T::kChannels;
  const int *starts, *taps;
  const unsigned char* from[kSlotPixels];

  // A place for each thread.
  static __device__ __forceinline__ void make_places(const DepthwiseGeometry& p, const Spot& at, unsigned char* places,
                                                     int thread) {
    unsigned rest = thread;
    int place[3], halo = 0;
    for (int axis = 2; axis >= 0; --axis) place[axis] = take(rest, p.tile[axis]);
    bool inside = rest == 0;
    int64_t out = 0;
    for (int axis = 0; axis < 3; ++axis) {
      inside &= place[axis] < at.left[axis];
      out += output_offset(p, at, axis, place[axis]);
      halo = halo * p.halo[axis] + place[axis] * p.stride[axis];
    }
    store_shared<PixelPlace>(places + kPixelPlaceBytes * thread,
                             {inside ? out : -1, rest == 0 ? halo * kPixelBytes : 0});
  }

  __device__ __forceinline__ TablePixels(const DepthwiseGeometry& p, const Spot& at, const unsigned char* places,
                                         const unsigned char* halo, int thread) {
    int table = 0;
    for (int axis = 0; axis < 3; ++axis) table = table * p.tap_classes[axis] + at.residue[axis] % p.tap_classes[axis];
    starts = p.tables + p.starts + table * (p.shells + 1);
    taps = p.tables + p.taps;
#pragma unroll
    for (int i = 0; i < kSlotPixels; ++i) from[i] = halo + place(places, i, thread).halo + 4 * (thread % kWords);
  }

  static __device__ __forceinline__ PixelPlace place(const unsigned char* places, int i, int thread) {
    return load_shared<PixelPlace>(places + kPixelPlaceBytes * (thread / kWords + kSlots * i));
  }

  __device__ __forceinline__ void sum_shell(int shell, float (&sums)[kSlotPixels][kChannels]) const {
#pragma unroll
    for (int i = 0; i < kSlotPixels; ++i)
#pragma unroll
      for (int j = 0; j < kChannels; ++j) sums[i][j] = 0;
    for (int tap = starts[shell]; tap < starts[shell + 1]; ++tap) {
      const int offset = taps[tap];
#pragma unroll
      for (int i = 0; i < kSlotPixels; ++i) {
        const uint32_t word = load_shared<uint32_t>(from[i] + offset);
        static_for<kChannels>([&](auto j) { sums[i][j] += T::template unpack<j>(word); });
      }
    }
  }
};

// ---- forward --------------------------------------------------------------------------------------------------------

// The values of a word of channels.
template <int CHANNELS>
struct alignas(4 * CHANNELS) Values {
  float v[CHANNELS];
};

// Items are chunks of channels.
template <class T, int K, int KD>
struct ForwardTask {
  static constexpr int kChannels = T::kChannels, kChunk = kWords * kChannels;
  const DepthwiseParams& p;
  unsigned char* memory;
  int thread, first_chunk, items;

  __device__ __forceinline__ ForwardTask(const DepthwiseParams& params, unsigned char* shared, int chunk_block,
                                         int index)
      : p(params), memory(shared), thread(index), first_chunk(chunk_block * p.block_chunks) {
    items = min(p.block_chunks, p.chunks - first_chunk);
  }

  __device__ __forceinline__ Spot spot() const { return load_shared<Spot>(memory + p.spot_at); }

  __device__ __forceinline__ void load(int item, int plane, unsigned char* to) const {
    const int chunk = first_chunk + item;
    load_plane<T, KD>(p, spot(), chunk * kChunk, plane, memory + p.gather_at, to, thread);
    if (K > 0 && plane == 0)
      for (int i = thread * 16; i < p.value_bytes; i += kGroupThreads * 16)
        copy_async<16>(to + p.values_at + i, p.values + int64_t{chunk} * p.value_bytes + i);
  }

  __device__ __forceinline__ int first_channel(int item) const {
    return (first_chunk + item) * kChunk + thread % kWords * kChannels;
  }
};

template <class T, int K, int KD>
struct Forward : ForwardTask<T, K, KD> {
  using Base = ForwardTask<T, K, KD>;
  using Base::memory, Base::p, Base::thread;
  using S = Shells<T, K, KD>;
  static constexpr int kChannels = T::kChannels, kShells = S::Taps::kShells, kReach = KD / 2;
  static constexpr int kTogether = depthwise_rows(K, KD);

  Column<T, unsigned char> out;            // of the plane that is done next
  float sums[KD][kTileHeight][kChannels];  // planes that the input plane reaches, the one that it completes first
  float values[kShells][kChannels], bias[kChannels];
  bool is_complete, is_whole;

  __device__ __forceinline__ Forward(const DepthwiseParams& params, unsigned char* shared, int chunk_block, int index)
      : Base(params, shared, chunk_block, index) {
    const Spot at = this->spot();
    out.place(p, static_cast<unsigned char*>(p.y), at, this->first_channel(0), thread / kWords);
    is_whole = at.left[1] > kTileHeight / 2;
  }

  __device__ __forceinline__ int planes(int) const { return planes_of<KD>(p, memory + p.spot_at); }

  __device__ __forceinline__ void begin_chunk(const unsigned char* from) {
    const auto load = [&](int row, float (&to)[kChannels]) {
      const auto found = load_shared<Values<kChannels>>(from + 4 * kChannels * (row * kWords + thread % kWords));
#pragma unroll
      for (int j = 0; j < kChannels; ++j) to[j] = found.v[j];
    };
#pragma unroll
    for (int shell = 0; shell < kShells; ++shell) load(shell, values[shell]);
    load(kShells, bias);
#pragma unroll
    for (int plane = 0; plane < KD; ++plane)
#pragma unroll
      for (int row = 0; row < kTileHeight; ++row)
#pragma unroll
        for (int j = 0; j < kChannels; ++j) sums[plane][row][j] = 0;
  }

  __device__ __forceinline__ void work(int item, int plane, const unsigned char* halo) {
    if (plane == 0) begin_chunk(halo + p.values_at);
    is_complete = plane >= KD - 1;
    int64_t offset = 0;
    if (locate_plane<KD>(p, this->spot(), plane, offset))
      S::template walk<0, 1, kTogether>(*this, halo, thread);
    else
      pass_zeros();
    const int done = plane - (KD - 1) + 1;
    if (KD > 1 && is_complete) out.move_planes(p, 1);
    if (plane + 1 < planes(item)) return;
    if (KD > 1) out.move_planes(p, -done);
    out.next_chunk(p);
  }

  __device__ __forceinline__ void pass_zeros() {
    static_for<kTileHeight>([&](auto row) {
#pragma unroll
      for (int plane = 0; plane < KD; ++plane)
#pragma unroll
        for (int j = 0; j < kChannels; ++j)
          sums[plane][row][j] = plane + 1 < KD ? sums[plane + 1 < KD ? plane + 1 : 0][row][j] : bias[j];
      if (is_complete) out.template store<row>(p, sums[0][row]);
    });
  }

  // A sink of Shells::walk, whose distance 0 comes first, in every plane: there the sums move on by one plane.
  __device__ __forceinline__ bool whole() const { return is_whole; }

  template <int ROW>
  __device__ __forceinline__ void begin() {}

  template <int SQUARE>
  __device__ __forceinline__ void radius() {}

  template <int SQUARE, int ROW>
  __device__ __forceinline__ void add(const float (&sum)[kChannels]) {
    static_for<KD>([&](auto plane) {
      constexpr int dz = plane - kReach, square = SQUARE + dz * dz;
      if constexpr (4 * square < K * K) {
        constexpr int shell = S::Taps::shell(square);
        static_for<kChannels>([&](auto j) {
          float before;
          if constexpr (SQUARE > 0)
            before = sums[plane][ROW][j];
          else if constexpr (plane + 1 < KD)
            before = sums[plane + 1][ROW][j];
          else
            before = bias[j];
          sums[plane][ROW][j] = before + values[shell][j] * sum[j];
        });
      }
    });
  }

  template <int ROW>
  __device__ __forceinline__ void end() {
    if (KD == 1 || is_complete)
      static_for<kTogether>([&](auto r) { out.template store<ROW + r>(p, sums[0][ROW + r]); });
  }
};

template <class T>
struct Forward<T, 0, 0> : ForwardTask<T, 0, 0> {
  using Base = ForwardTask<T, 0, 0>;
  using Base::Base, Base::memory, Base::p, Base::thread;
  static constexpr int kChannels = T::kChannels;

  __device__ __forceinline__ int planes(int) const { return 1; }

  __device__ __forceinline__ void work(int item, int, const unsigned char* halo) const {
    const Spot at = this->spot();
    unsigned char* const places = memory + p.pixel_at;
    if (item == 0) {
      TablePixels<T>::make_places(p, at, places, thread);
      __syncthreads();
    }
    const TablePixels<T> pixels(p, at, places, halo, thread);
    const auto* const values =
        reinterpret_cast<const Values<kChannels>*>(p.values + int64_t{this->first_chunk + item} * p.value_bytes) +
        thread % kWords;
    float totals[kSlotPixels][kChannels];
#pragma unroll
    for (int i = 0; i < kSlotPixels; ++i)
#pragma unroll
      for (int j = 0; j < kChannels; ++j) totals[i][j] = values[p.shells * kWords].v[j];
    for (int shell = 0; shell < p.shells; ++shell) {
      float sums[kSlotPixels][kChannels];
      pixels.sum_shell(shell, sums);
      const Values<kChannels> value = values[shell * kWords];
#pragma unroll
      for (int i = 0; i < kSlotPixels; ++i)
#pragma unroll
        for (int j = 0; j < kChannels; ++j) totals[i][j] += value.v[j] * sums[i][j];
    }
    const int channel = this->first_channel(item), left = p.channels - channel;
    if (left <= 0) return;
    unsigned char* const to =
        static_cast<unsigned char*>(p.y) + at.image * p.out.strides[0] + channel * p.out.strides[1];
#pragma unroll
    for (int i = 0; i < kSlotPixels; ++i) {
      const int64_t offset = TablePixels<T>::place(places, i, thread).out;
      if (offset >= 0) store_word<T>(p.out, to + offset, left, totals[i]);
    }
  }
};

// ---- weight gradient ------------------------------------------------------------------------------------------------

// Items are tiles; all of them add to the same sums.
template <class T, int K, int KD>
struct GradientTask {
  static constexpr int kChannels = T::kChannels, kChunk = kWords * kChannels;
  const DepthwiseGradientParams& p;
  unsigned char* memory;
  int thread, first_shell, shells, chunk, split, items;

  __device__ __forceinline__ GradientTask(const DepthwiseGradientParams& params, unsigned char* shared, unsigned block,
                                          int index)
      : p(params), memory(shared), thread(index) {
    first_shell = take(block, p.shell_blocks) * p.block_shells;
    shells = min(p.block_shells, p.shells - first_shell);
    chunk = take(block, p.chunks);
    split = static_cast<int>(block);
    items = min(p.split_tiles, p.all_tiles - split * p.split_tiles);
  }

  __device__ __forceinline__ unsigned char* spot_at(int item) const {
    return memory + p.spot_at + item % kGradientSpots * kSpotBytes;
  }
  __device__ __forceinline__ Spot spot(int item) const { return load_shared<Spot>(spot_at(item)); }
  __device__ __forceinline__ void find_spot(int item) const {
    if (thread == 0 && item < items) store_spot(p, split * p.split_tiles + item, spot_at(item));
  }

  // The spot of this item is known; the next one's takes the place of the last but one.
  __device__ __forceinline__ void load(int item, int plane, unsigned char* to) const {
    const Spot at = spot(item);
    if (plane == 0) {
      make_table<T, K, KD>(p, at, memory + p.gather_at, thread);
      find_spot(item + 1);
      __syncthreads();
    }
    load_plane<T, KD>(p, at, chunk * kChunk, plane, memory + p.gather_at, to, thread);
  }

  __device__ __forceinline__ int channel() const { return chunk * kChunk + thread % kWords * kChannels; }

  // Sums of each warp's columns, which its first kWords lanes keep in shared memory.
  __device__ __forceinline__ unsigned char* total(int row) const {
    const int at = (thread / 32 * (p.block_shells + 1) + row) * kWords + thread % kWords;
    return memory + p.totals_at + 4 * kChannels * at;
  }
  __device__ __forceinline__ void add_columns(int row, const float (&sums)[kChannels], bool first) const {
    Values<kChannels> all;
    for (int j = 0; j < kChannels; ++j) {
      float sum = sums[j];
      for (int mask = kWords; mask < 32; mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
      all.v[j] = sum;
    }
    if (thread % 32 >= kWords) return;
    if (!first) {
      const auto before = load_shared<Values<kChannels>>(total(row));
      for (int j = 0; j < kChannels; ++j) all.v[j] += before.v[j];
    }
    store_shared(total(row), all);
  }

  // To the workspace.
  __device__ __forceinline__ void store() const {
    __syncthreads();  // all warps' sums are there
    float* const sums = reinterpret_cast<float*>(p.workspace + p.sums);
    float* const bias_sums = reinterpret_cast<float*>(p.workspace + p.bias_sums);
    const int rows = p.block_shells + 1;
    for (int i = thread; i < rows * kChunk; i += kGroupThreads) {
      const int row = i % rows, channel = i / rows;
      const int64_t place = int64_t{split} * p.channels + chunk * kChunk + channel;
      const bool is_bias = row == p.block_shells;
      if (chunk * kChunk + channel >= p.channels || (is_bias ? first_shell > 0 : row >= shells)) continue;
      float sum = 0;
      for (int warp = 0; warp < kDepthwiseWarps && items > 0; ++warp)
        sum += load_shared<float>(memory + p.totals_at + 4 * ((warp * rows + row) * kChunk + channel));
      if (is_bias)
        bias_sums[place] = sum;
      else
        sums[place * p.shells + first_shell + row] = sum;
    }
  }
};

template <class T, int K, int KD>
struct Gradient : GradientTask<T, K, KD> {
  using Base = GradientTask<T, K, KD>;
  using Base::memory, Base::p, Base::thread;
  using S = Shells<T, K, KD>;
  static constexpr int kChannels = T::kChannels, kShells = S::Taps::kShells, kReach = KD / 2;
  static constexpr int kTogether = depthwise_rows(K, KD);

  Column<T, const unsigned char> grad;           // of the last plane that the input plane reaches
  uint32_t grads[KD][kTileHeight];               // of all of them
  float both[kReach + 1][kTogether][kChannels];  // grads of the planes dz and -dz, for the rows at hand
  float sums[kShells][kChannels], bias[kChannels];
  bool is_whole;

  __device__ __forceinline__ Gradient(const DepthwiseGradientParams& params, unsigned char* shared, unsigned block,
                                      int index)
      : Base(params, shared, block, index) {
#pragma unroll
    for (int j = 0; j < kChannels; ++j) {
      bias[j] = 0;
#pragma unroll
      for (int shell = 0; shell < kShells; ++shell) sums[shell][j] = 0;
    }
  }

  __device__ __forceinline__ int planes(int item) const { return planes_of<KD>(p, this->spot_at(item)); }

  __device__ __forceinline__ void work(int item, int plane, const unsigned char* halo) {
    const Spot at = this->spot(item);
    if (plane == 0) {
#pragma unroll
      for (int i = 0; i < KD; ++i)
#pragma unroll
        for (int row = 0; row < kTileHeight; ++row) grads[i][row] = 0;
      grad.place(p, static_cast<const unsigned char*>(p.grad), at, this->channel(), thread / kWords);
      is_whole = at.left[1] > kTileHeight / 2;
    }
    const bool is_there = plane < planes(item) - (KD - 1);
    static_for<kTileHeight>([&](auto row) {
#pragma unroll
      for (int i = 0; i + 1 < KD; ++i) grads[i][row] = grads[i + 1][row];
      grads[KD - 1][row] = KD == 1 || is_there ? grad.template load<row>(p) : 0;
    });
    if (KD > 1) grad.move_planes(p, 1);
    static_for<kTileHeight>([&](auto row) {
      static_for<kChannels>([&](auto j) { bias[j] += T::template unpack<j>(grads[KD - 1][row]); });
    });
    int64_t offset = 0;
    if (locate_plane<KD>(p, at, plane, offset)) S::template walk<0, 1, kTogether>(*this, halo, thread);
  }

  __device__ __forceinline__ void finish() const {
#pragma unroll
    for (int shell = 0; shell < kShells; ++shell) this->add_columns(shell, sums[shell], true);
    this->add_columns(kShells, bias, true);
    this->store();
  }

  // A sink of Shells::walk.
  __device__ __forceinline__ bool whole() const { return is_whole; }

  template <int ROW>
  __device__ __forceinline__ void begin() {
    static_for<kReach + 1>([&](auto dz) {
      static_for<kTogether>([&](auto r) {
        static_for<kChannels>([&](auto j) {
          float sum = T::template unpack<j>(grads[kReach + dz][ROW + r]);
          if constexpr (dz > 0) sum += T::template unpack<j>(grads[kReach - dz][ROW + r]);
          both[dz][r][j] = sum;
        });
      });
    });
  }

  template <int SQUARE>
  __device__ __forceinline__ void radius() {}

  template <int SQUARE, int ROW>
  __device__ __forceinline__ void add(const float (&sum)[kChannels]) {
    static_for<kReach + 1>([&](auto dz) {
      constexpr int square = SQUARE + dz * dz;
      if constexpr (4 * square < K * K)
        static_for<kChannels>(
            [&](auto j) { sums[S::Taps::shell(square)][j] += both[dz][ROW % kTogether][j] * sum[j]; });
    });
  }

  template <int ROW>
  __device__ __forceinline__ void end() {}
};

template <class T>
struct Gradient<T, 0, 0> : GradientTask<T, 0, 0> {
  using Base = GradientTask<T, 0, 0>;
  using Base::Base, Base::memory, Base::p, Base::thread;
  static constexpr int kChannels = T::kChannels;

  __device__ __forceinline__ int planes(int) const { return 1; }

  __device__ __forceinline__ void work(int item, int, const unsigned char* halo) const {
    const Spot at = this->spot(item);
    unsigned char* const places = memory + p.pixel_at;
    TablePixels<T>::make_places(p, at, places, thread);
    __syncthreads();
    const TablePixels<T> pixels(p, at, places, halo, thread);
    const int channel = this->channel(), left = p.channels - channel;
    const unsigned char* const from =
        static_cast<const unsigned char*>(p.grad) + at.image * p.out.strides[0] + channel * p.out.strides[1];
    float grads[kSlotPixels][kChannels], bias[kChannels] = {};
#pragma unroll
    for (int i = 0; i < kSlotPixels; ++i) {
      const int64_t offset = TablePixels<T>::place(places, i, thread).out;
      const uint32_t word = left > 0 && offset >= 0 ? load_word<T>(p.out, from + offset, left) : 0;
      static_for<kChannels>([&](auto j) {
        grads[i][j] = T::template unpack<j>(word);
        bias[j] += grads[i][j];
      });
    }
    for (int shell = 0; shell < this->shells; ++shell) {
      float sums[kSlotPixels][kChannels], dots[kChannels] = {};
      pixels.sum_shell(this->first_shell + shell, sums);
#pragma unroll
      for (int i = 0; i < kSlotPixels; ++i)
#pragma unroll
        for (int j = 0; j < kChannels; ++j) dots[j] += grads[i][j] * sums[i][j];
      this->add_columns(shell, dots, item == 0);
    }
    this->add_columns(p.block_shells, bias, item == 0);
  }

  __device__ __forceinline__ void finish() const { this->store(); }
};

// ---- kernels --------------------------------------------------------------------------------------------------------

template <class T, int K, int KD>
__global__ void __launch_bounds__(kGroupThreads, forward_residents(K, KD, T::kChannels == 2))
    depthwise(const __grid_constant__ DepthwiseParams p) {
  unsigned char* const memory = shared_memory();
  const int thread = threadIdx.x;
  unsigned tile = blockIdx.x;
  const int chunk_block = take(tile, p.chunk_blocks);
  if (thread == 0) store_spot(p, tile, memory + p.spot_at);
  __syncthreads();
  Forward<T, K, KD> task(p, memory, chunk_block, thread);
  make_table<T, K, KD>(p, task.spot(), memory + p.gather_at, thread);
  __syncthreads();
  march(p, task, memory);
}

template <class T, int K, int KD>
__global__ void __launch_bounds__(kGroupThreads, gradient_residents(K, KD, T::kChannels == 2))
    depthwise_gradient(const __grid_constant__ DepthwiseGradientParams p) {
  unsigned char* const memory = shared_memory();
  const int thread = threadIdx.x;
  if (blockIdx.x == 0 && thread == 0) *reinterpret_cast<unsigned*>(p.workspace + p.counter) = 0;
  Gradient<T, K, KD> task(p, memory, blockIdx.x, thread);
  task.find_spot(0);
  __syncthreads();
  if (task.items > 0) march(p, task, memory);
  task.finish();
}

Kernel<DepthwiseParams> kernel_of(Format format) {
  if (format == Format::kFloat16) return depthwise<Float16, RADCONV_K, RADCONV_KD>;
  if (format == Format::kBFloat16) return depthwise<BFloat16, RADCONV_K, RADCONV_KD>;
  return depthwise<Float32, RADCONV_K, RADCONV_KD>;
}

Kernel<DepthwiseGradientParams> gradient_of(Format format) {
  if (format == Format::kFloat16) return depthwise_gradient<Float16, RADCONV_K, RADCONV_KD>;
  if (format == Format::kBFloat16) return depthwise_gradient<BFloat16, RADCONV_K, RADCONV_KD>;
  return depthwise_gradient<Float32, RADCONV_K, RADCONV_KD>;
}

using Forwards = Launcher<DepthwiseParams, kernel_of, kGroupThreads>;
using Gradients = Launcher<DepthwiseGradientParams, gradient_of, kGroupThreads>;

}  // namespace

const SizedKernels<DepthwiseParams> RADCONV_NAME(depthwise, RADCONV_K, RADCONV_KD) = {
    RADCONV_K, RADCONV_KD, Forwards::prepare, Forwards::launch};
const SizedKernels<DepthwiseGradientParams> RADCONV_NAME(depthwise_gradient, RADCONV_K, RADCONV_KD) = {
    RADCONV_K, RADCONV_KD, Gradients::prepare, Gradients::launch};

}  // namespace radconv::cuda
