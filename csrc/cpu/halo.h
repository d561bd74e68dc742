// Where a tile lies, and its input: padding, wrapping, strides, zero insertion, memory format and data type are this
// copy's business alone.  For tile.cpp alone.

#pragma once

#include "simd.h"
#include "tile.h"

namespace radconv::cpu {
namespace {

struct TilePlace {
  int64_t batch;     // first sample
  int64_t images;    // samples
  int64_t first[3];  // first output element per axis
  int64_t size[3];
  int64_t halo[3];
  int64_t line;  // places of a line of pixels: its size, or one more (TileShape::even_lines)

  int64_t image_lines() const { return size[0] * size[1]; }
  int64_t lines() const { return images * image_lines(); }
  int64_t places() const { return lines() * line; }
};

TilePlace place_of(const Call& call, int64_t index) {
  TilePlace at;
  for (int i = 2; i >= 0; --i) {
    const Axis& axis = call.shape.axis[i];
    const int64_t tile = index % call.tile.count[i];
    index /= call.tile.count[i];
    at.first[i] = tile * call.tile.out[i];
    at.size[i] = smaller(call.tile.out[i], axis.out - at.first[i]);
    at.halo[i] = (at.size[i] - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1;
  }
  at.batch = index * call.tile.images;
  at.images = smaller(call.tile.images, call.shape.batch - at.batch);
  at.line = call.tile.even_lines ? round_up(at.size[2], 2) : at.size[2];
  return at;
}

// Input element at a virtual position, or -1 for a zero.
inline int64_t source(const Axis& axis, bool wrap, int64_t v) {
  if (wrap) return v < 0 ? v + axis.in : v >= axis.in ? v - axis.in : v;
  if (v < 0) return -1;
  if (axis.upsample != 1) {
    if (v % axis.upsample) return -1;
    v /= axis.upsample;
  }
  return v < axis.in ? v : -1;
}

// Where a halo's input lies, the same for all channels of a tile.
struct HaloMap {
  const int64_t* line;    // (halo[0], halo[1]) offset of a line's input, -1 for zeros
  const int64_t* column;  // (halo[2]) input column, -1 for a zero
  int64_t begin, end;     // columns outside are zeros, inside consecutive; begin == end: not such a halo
};

// `buffer`: room for halo[0] * halo[1] + halo[2] numbers of the largest tile.
HaloMap halo_map(const Call& call, const TilePlace& at, int64_t* buffer) {
  const Axis* axis = call.shape.axis;
  const bool wrap = call.shape.wrap;
  int64_t* line = buffer;
  for (int64_t z = 0; z < at.halo[0]; ++z)
    for (int64_t y = 0; y < at.halo[1]; ++y) {
      const int64_t from_z = source(axis[0], wrap, at.first[0] * axis[0].stride - axis[0].low + z);
      const int64_t from_y = source(axis[1], wrap, at.first[1] * axis[1].stride - axis[1].low + y);
      *line++ = from_z < 0 || from_y < 0 ? -1 : from_z * call.line_strides.of[2] + from_y * call.line_strides.of[3];
    }
  int64_t* column = line;
  for (int64_t h = 0; h < at.halo[2]; ++h)
    column[h] = source(axis[2], wrap, at.first[2] * axis[2].stride - axis[2].low + h);
  HaloMap map{buffer, column, 0, 0};
  if (axis[2].stride != 1 || axis[2].upsample != 1 || call.line_strides.of[4] != 1) return map;
  int64_t begin = 0, end = at.halo[2];
  while (begin < end && column[begin] < 0) ++begin;
  while (end > begin && column[end - 1] < 0) --end;
  for (int64_t h = begin + 1; h < end; ++h)
    if (column[h] != column[h - 1] + 1) return map;
  map.begin = begin;
  map.end = end;
  return map;
}

// The input of a tile's next halo, fetched into the second-level cache line by line while there is other work to do.
struct Ahead {
  const char* from;     // of the next channel, at the first column
  const int64_t* line;  // (lines) as in HaloMap
  int64_t lines, bytes, element;
  int64_t fetched = 0;  // lines

  // Up to `part` of `parts` of it.
  void fetch(int64_t part, int64_t parts) {
    for (const int64_t until = lines * part / parts; fetched < until; ++fetched)
      for (int64_t i = 0; line[fetched] >= 0 && i < bytes; i += 64)
        __builtin_prefetch(from + line[fetched] * element + i, 0, 2);
  }
};

constexpr Ahead kNothingAhead{nullptr, nullptr, 0, 0, 0};

// `channels` channels of one input element, the rest of the lane group zero.
template <typename T>
inline void copy_lanes(const T* from, int64_t channels, float* to, FiniteCheck& check) {
  if (channels < kLanes) store(to, Vec{});
  copy_run(from, channels, to, check);
}

// A line whose columns are input columns as they stand.  `next_channel`: offset of a line to fetch besides, or 0.
template <typename T>
inline void load_run(const T* line, int64_t next_channel, const HaloMap& map, int64_t width, float* row,
                     FiniteCheck& check) {
  // what is written past the row's end belongs to the next row, which comes later
  zero_run(row, map.begin);
  zero_run(row + map.end, width - map.end);
  const T* from = line + map.column[map.begin];
  copy_run(from, map.end - map.begin, row + map.begin, check);
  // the same line of the next channel: too short for the machine to see it coming
  for (int64_t i = 0; next_channel && i < map.end - map.begin; i += 64 / static_cast<int64_t>(sizeof(T)))
    __builtin_prefetch(from + next_channel + i, 0, 2);
}

// A line column by column: strides, zero insertion, lane groups of channels.
template <typename T>
void load_columns(const Call& call, const TilePlace& at, const T* line, const HaloMap& map, int64_t channels,
                  float* row, FiniteCheck& check) {
  const TileShape& tile = call.tile;
  const int64_t stride = call.shape.axis[2].stride, step = call.line_strides.of[4];
  int64_t phase = 0, place = 0;
  for (int64_t h = 0; h < at.halo[2]; ++h) {
    const int64_t from = map.column[h];
    float* to = row + phase * tile.phase_pitch + place * tile.unit;
    if (tile.unit == 1) {
      check.add(*to = from < 0 ? 0.0f : read(line + from * step));
    } else if (from < 0) {
      store(to, Vec{});
    } else {
      copy_lanes(line + from * step, channels, to, check);
      __builtin_prefetch(line + from * step + kLanes, 0, 2);  // the next lane group
    }
    if (++phase == stride) phase = 0, ++place;
  }
}

// A sample's lane group with its pixels apart and its channels together: (pixels, kLanes), missing channels zero.
template <typename T>
void turn_sample(const Call& call, const T* from, int64_t channels, float* to) {
  const Axis* axis = call.shape.axis;
  const int64_t pixels = axis[0].in * axis[1].in * axis[2].in;
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const int64_t at = smaller(p, pixels - kLanes);  // the last square may overlap the one before
    Vec v[kLanes];
#pragma GCC unroll 16
    for (int64_t c = 0; c < kLanes; ++c) v[c] = c < channels ? load_as_float(from + c * call.xs.of[1] + at) : Vec{};
    transpose(v);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) store(to + (at + i) * kLanes, v[i]);
  }
}

// What load_halo() will read after the channel at `from`; nothing where lines aren't copied as they stand.
template <typename T>
Ahead ahead_of(const Call& call, const TilePlace& at, const HaloMap& map, const T* from) {
  if (map.begin == map.end || call.tile.unit > 1) return kNothingAhead;
  constexpr int64_t kBytes = sizeof(T);
  return {reinterpret_cast<const char*>(from + call.xs.of[1] + map.column[map.begin]), map.line,
          at.halo[0] * at.halo[1], (map.end - map.begin) * kBytes, kBytes};
}

// The halo of one lane group of one sample, whose first channel is at `from`.  `fetches`: the next channel's runs too.
template <typename T>
void load_halo(const Call& call, const TilePlace& at, const HaloMap& map, const T* from, int64_t channels, bool fetches,
               float* halo) {
  const TileShape& tile = call.tile;
  const int64_t next = fetches ? call.xs.of[1] : 0;
  const bool runs = map.begin < map.end && tile.unit == 1;
  const int64_t* line = map.line;
  FiniteCheck check;
  for (int64_t z = 0; z < at.halo[0]; ++z) {
    float* row = halo + z * tile.halo[1] * tile.row_pitch;
    for (int64_t y = 0; y < at.halo[1]; ++y, ++line, row += tile.row_pitch) {
      if (*line < 0)
        zero_run(row, tile.row_pitch);
      else if (runs)
        load_run(from + *line, next, map, at.halo[2], row, check);
      else
        load_columns(call, at, from + *line, map, channels, row, check);
    }
  }
  check.report(call.nonfinite);
}

}  // namespace
}  // namespace radconv::cpu
