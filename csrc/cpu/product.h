// Products of panels (basis rows) with folded weights or gradients.  For tile.cpp alone.
//
// A product keeps a block of sums in registers: MR x NR vectors of multiply-adds, or 2 x 2 AMX tiles.  Bound: the
// instruction set's rate of multiplication; panels lie in the second-level cache, one strip of them in the first.

#pragma once

#include "simd.h"
#include "tile.h"

namespace radconv::cpu {
namespace {

// --- vectors: C (R x V vectors) = or += A (R x depth) * B (depth x V vectors) ----------------------------------------

// sum += left * right: a number times a vector, or (Pairs) a pair of bfloat16 times pairs, both halves added.
template <bool Pairs>
inline void multiply_add(Vec& sum, const float* left, Vec right) {
  if constexpr (!Pairs) {
    sum += *left * right;
  } else {
#if defined(__AVX512BF16__)
    int pair;
    std::memcpy(&pair, left, sizeof pair);
    sum = reinterpret_cast<Vec>(
        _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)), reinterpret_cast<__m512bh>(right)));
#endif
  }
}

// A[r][d] at a + r * a_row + d * a_step.
struct Left {
  const float* a;
  int64_t a_row, a_step;
};

template <int R, int V, bool Pairs>
void block_product(int64_t depth, Left left, const float* b, int64_t b_row, float* c, int64_t c_row, bool accumulate) {
  Vec sum[R][V];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) sum[i][v] = accumulate ? load(c + i * c_row + v * kLanes) : Vec{};
  const float* a = left.a;
  for (int64_t d = 0; d < depth; ++d) {
    Vec right[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) right[v] = load(b + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) multiply_add<Pairs>(sum[i][v], a + i * left.a_row, right[v]);
    a += left.a_step;
    b += b_row;
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) store(c + i * c_row + v * kLanes, sum[i][v]);
}

using BlockProduct = void (*)(int64_t, Left, const float*, int64_t, float*, int64_t, bool);

template <int R, bool Pairs>
BlockProduct block_product_of(int vectors) {
  switch (vectors) {
    case 1:
      return block_product<R, 1, Pairs>;
    case 2:
      return block_product<R, 2, Pairs>;
    default:
      return block_product<R, 3, Pairs>;
  }
}

// The register block for `rows` (1 .. kRows) by `columns` (1 .. kStrip, computed in whole vectors).
template <bool Pairs>
BlockProduct block_product_for(int64_t rows, int64_t columns) {
  const int vectors = static_cast<int>(ceil_div(columns, kLanes));
  switch (rows) {
    case 1:
      return block_product_of<1, Pairs>(vectors);
    case 2:
      return block_product_of<2, Pairs>(vectors);
    case 3:
      return block_product_of<3, Pairs>(vectors);
#if defined(__AVX512F__)
    case 4:
      return block_product_of<4, Pairs>(vectors);
    case 5:
      return block_product_of<5, Pairs>(vectors);
    case 6:
      return block_product_of<6, Pairs>(vectors);
    case 7:
      return block_product_of<7, Pairs>(vectors);
#endif
    default:
      return block_product_of<kRows, Pairs>(vectors);
  }
}

// --- rounding to bfloat16 --------------------------------------------------------------------------------------------

// Which of two vectors' numbers become neighbours.
enum class Order {
  kInterleaved,  // lane i of the first and lane i of the second
  kNatural,      // lanes 2i and 2i + 1, the first vector before the second
};

// The numbers of both vectors as sums of `Parts` bfloat16 each, part p at to + p * step.  All but the last are cut off
// towards zero, so that the rest is exact: three parts hold all 24 bits of a float32.
template <int Parts, Order order>
inline void round_pairs(Vec a, Vec b, char* to, int64_t step);

#if defined(__AVX512BF16__)
template <int Parts, Order order>
inline void round_pairs(Vec a, Vec b, char* to, int64_t step) {
  typedef uint32_t Words __attribute__((vector_size(64)));
  constexpr uint32_t kTop = 0xffff0000u;
#pragma GCC unroll 3
  for (int p = 0; p + 1 < Parts; ++p) {
    const Words high_a = reinterpret_cast<Words>(a) & kTop, high_b = reinterpret_cast<Words>(b) & kTop;
    __m512i pairs;
    if constexpr (order == Order::kInterleaved) {
      pairs = reinterpret_cast<__m512i>(reinterpret_cast<Words>(a) >> 16 | high_b);
    } else {
      const __m512i odd = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                                           25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
      pairs = _mm512_permutex2var_epi16(reinterpret_cast<__m512i>(a), odd, reinterpret_cast<__m512i>(b));
    }
    _mm512_storeu_si512(to + p * step, pairs);
    a -= reinterpret_cast<Vec>(high_a);
    b -= reinterpret_cast<Vec>(high_b);
  }
  __m512i pairs =
      reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a)));
  if constexpr (order == Order::kInterleaved) {
    const __m512i mixed = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    pairs = _mm512_permutexvar_epi16(mixed, pairs);
  }
  _mm512_storeu_si512(to + (Parts - 1) * step, pairs);
}
#endif

// --- AMX -------------------------------------------------------------------------------------------------------------

// All blocks of C (rows, columns) = or += left * right over `steps` tiles of 32: C has whole tiles of room.  A block's
// tiles lie (steps, parts), blocks of 16 rows or columns are `left_block` and `right_block` bytes apart.
template <int LeftParts, int RightParts>
void tile_products(int64_t steps, const char* left, int64_t left_block, int64_t rows, const char* right,
                   int64_t right_block, int64_t columns, float* c, int64_t c_row, bool accumulate, bool columns_first);

#if defined(__AMX_BF16__)
// Tile registers hold 16 rows of 64 bytes between construction and destruction.
class TileUnit {
 public:
  TileUnit() {
    struct alignas(64) {
      uint8_t palette, start, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } config;
    std::memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
  }
  ~TileUnit() { _tile_release(); }
  TileUnit(const TileUnit&) = delete;
  TileUnit& operator=(const TileUnit&) = delete;
};

// The products of parts that count: those whose ranks add up to less than the number of parts.  From one to the next
// only one side changes.
template <int LeftParts, int RightParts>
struct Parts;
template <>
struct Parts<3, 3> {
  static constexpr int count = 6, left[] = {0, 0, 1, 1, 0, 2}, right[] = {2, 1, 1, 0, 0, 0};
};
template <>
struct Parts<2, 1> {
  static constexpr int count = 2, left[] = {1, 0}, right[] = {0, 0};
};
template <>
struct Parts<1, 2> {
  static constexpr int count = 2, left[] = {0, 0}, right[] = {1, 0};
};
template <>
struct Parts<1, 1> {
  static constexpr int count = 1, left[] = {0}, right[] = {0};
};

// L x R blocks.
template <int L, int R, int LeftParts, int RightParts>
void tile_product(int64_t steps, const char* left, int64_t left_block, const char* right, int64_t right_block, float* c,
                  int64_t c_row, bool accumulate) {
  using P = Parts<LeftParts, RightParts>;
  const int64_t row = c_row * 4;
  // Hazard: the tile intrinsics don't tell the compiler which memory they read.
  asm volatile("" ::: "memory");
  if (accumulate) {
    _tile_loadd(0, c, row);
    if constexpr (R > 1) _tile_loadd(1, c + 16, row);
    if constexpr (L > 1) _tile_loadd(2, c + 16 * c_row, row);
    if constexpr (L > 1 && R > 1) _tile_loadd(3, c + 16 * c_row + 16, row);
  } else {
    _tile_zero(0);
    if constexpr (R > 1) _tile_zero(1);
    if constexpr (L > 1) _tile_zero(2);
    if constexpr (L > 1 && R > 1) _tile_zero(3);
  }
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 6
    for (int p = 0; p < P::count; ++p) {
      if (p == 0 || P::left[p] != P::left[p - 1]) {
        const char* tile = left + P::left[p] * kTileBytes;
        _tile_loadd(4, tile, 64);
        if constexpr (L > 1) _tile_loadd(5, tile + left_block, 64);
      }
      if (p == 0 || P::right[p] != P::right[p - 1]) {
        const char* tile = right + P::right[p] * kTileBytes;
        _tile_loadd(6, tile, 64);
        if constexpr (R > 1) _tile_loadd(7, tile + right_block, 64);
      }
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (R > 1) _tile_dpbf16ps(1, 4, 7);
      if constexpr (L > 1) _tile_dpbf16ps(2, 5, 6);
      if constexpr (L > 1 && R > 1) _tile_dpbf16ps(3, 5, 7);
    }
    left += LeftParts * kTileBytes;
    right += RightParts * kTileBytes;
  }
  _tile_stored(0, c, row);
  if constexpr (R > 1) _tile_stored(1, c + 16, row);
  if constexpr (L > 1) _tile_stored(2, c + 16 * c_row, row);
  if constexpr (L > 1 && R > 1) _tile_stored(3, c + 16 * c_row + 16, row);
  asm volatile("" ::: "memory");
}

template <int LeftParts, int RightParts>
void tile_products(int64_t steps, const char* left, int64_t left_block, int64_t rows, const char* right,
                   int64_t right_block, int64_t columns, float* c, int64_t c_row, bool accumulate, bool columns_first) {
  const TileUnit unit;
  const int64_t lefts = ceil_div(rows, 16), rights = ceil_div(columns, 16);
  // the side of the outer loop stays in the first cache
  const int64_t outers = columns_first ? rights : lefts, inners = columns_first ? lefts : rights;
  for (int64_t outer = 0; outer < outers; outer += 2)
    for (int64_t inner = 0; inner < inners; inner += 2) {
      const int64_t l = columns_first ? inner : outer, r = columns_first ? outer : inner;
      const bool two_left = l + 1 < lefts, two_right = r + 1 < rights;
      const auto product =
          two_left ? two_right ? tile_product<2, 2, LeftParts, RightParts> : tile_product<2, 1, LeftParts, RightParts>
          : two_right ? tile_product<1, 2, LeftParts, RightParts>
                      : tile_product<1, 1, LeftParts, RightParts>;
      product(steps, left + l * left_block, left_block, right + r * right_block, right_block,
              c + l * 16 * c_row + r * 16, c_row, accumulate);
    }
}
#endif

}  // namespace
}  // namespace radconv::cpu
