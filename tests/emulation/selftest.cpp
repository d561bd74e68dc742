// Tests of the emulation itself: each prints "ok <name>" or "FAILED <name>: <why>". Arguments choose tests, --list
// lists.

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cuda/primitives.cuh"

namespace {

using namespace radconv::cuda;

constexpr unsigned kFull = 0xffffffffu;

// ---- checks ---------------------------------------------------------------------------------------------------------

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string hex(uint32_t v) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", static_cast<unsigned>(v));
  return text;
}

void expect(bool fine, const std::string& what) {
  if (!fine) throw Failure(what);
}

void expect_equal(const std::string& what, double expected, double got) {
  expect(expected == got, what + ": expected " + std::to_string(expected) + ", got " + std::to_string(got));
}

void expect_bits(const std::string& what, uint32_t expected, uint32_t got) {
  expect(expected == got, what + ": expected " + hex(expected) + ", got " + hex(got));
}

// An environment variable for the life of the object.
class Setting {
 public:
  Setting(const char* name, const std::string& value) : name_(name) { setenv(name, value.c_str(), 1); }
  ~Setting() { unsetenv(name_); }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
};

class Races : Setting {
 public:
  Races() : Setting("RADCONV_EMULATION_RACES", "1") {}
};

class Order : Setting {
 public:
  explicit Order(const std::string& order) : Setting("RADCONV_EMULATION_ORDER", order) {}
};

const std::vector<std::string> kOrders = {"forward", "backward", "0", "1", "2", "3", "4"};

// ---- launches -------------------------------------------------------------------------------------------------------

// What the threads are to do: a callable that outlives the launch.
struct Body {
  template <class F>
  Body(const F& f) : call([](const void* f) { (*static_cast<const F*>(f))(); }), what(&f) {}

  void (*call)(const void*);
  const void* what;
};

// The kernel of all tests, declared as the project's are.
template <class T, int THREADS>
__global__ void __launch_bounds__(THREADS, 1) kernel(const __grid_constant__ T body) {
  if constexpr (THREADS > 0) body.call(body.what);
}

cudaError_t launch(unsigned blocks, int threads, int shared, const Body& body) {
  return launch_kernel(kernel<Body, 1024>, blocks, threads, shared, nullptr, body);
}

void run(unsigned blocks, int threads, int shared, const Body& body) {
  const cudaError_t error = launch(blocks, threads, shared, body);
  expect(error == cudaSuccess, std::string("launch: ") + cudaGetErrorString(error));
}

// What the launch was ended with, or nothing.
std::string report(int threads, int shared, const Body& body) {
  try {
    run(1, threads, shared, body);
  } catch (const Failure&) {
    throw;
  } catch (const std::runtime_error& e) {
    return e.what();
  }
  return "";
}

using Report = std::initializer_list<const char*>;  // what a report has to say

void expect_report(const Report& words, int threads, int shared, const Body& body) {
  const std::string text = report(threads, shared, body);
  expect(!text.empty(), std::string("expected a report of '") + *words.begin() + "', got none");
  for (const char* word : words)
    expect(text.find(word) != std::string::npos, std::string("expected '") + word + "' in the report, got: " + text);
}

// A report whatever the order in which the threads run.
void expect_race(const Report& words, int threads, const Body& body) {
  const Races races;
  for (const std::string& order : kOrders) {
    const Order set(order);
    expect_report({"race"}, threads, 1024, body);
    expect_report(words, threads, 1024, body);
  }
}

void expect_no_race(int threads, const Body& body) {
  const Races races;
  for (const std::string& order : kOrders) {
    const Order set(order);
    const std::string text = report(threads, 1024, body);
    expect(text.empty(), "order " + order + ": expected no report, got: " + text);
  }
}

int thread() { return static_cast<int>(threadIdx.x); }
int lane() { return thread() % 32; }
int warp() { return thread() / 32; }

uint32_t word_at(int index) { return load_shared<uint32_t>(shared_memory() + 4 * index); }
void set_word(int index, uint32_t value) { store_shared(shared_memory() + 4 * index, value); }

struct Random {
  uint64_t state;
  uint32_t bits() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 32);
  }
  float uniform() { return static_cast<float>(bits()) * 0x1p-31f - 1; }  // -1 to 1
};

// ---- fragments ------------------------------------------------------------------------------------------------------
// Who holds an element: 10 * lane + number of the element in the lane's fragment. Written out from the PTX ISA:
// groupID = lane >> 2, threadID_in_group = lane % 4.
//
// mma.m16n8k16, .f16 and .bf16. a_i: row groupID for i in {0, 1, 4, 5}, else groupID + 8; column
// 2 threadID_in_group + (i & 1), + 8 for i >= 4. b_i: row 2 threadID_in_group + (i & 1), + 8 for i >= 2; column
// groupID. Two elements a register, the first one in its low half.

constexpr int kA16[16][16] = {
    {0, 1, 10, 11, 20, 21, 30, 31, 4, 5, 14, 15, 24, 25, 34, 35},
    {40, 41, 50, 51, 60, 61, 70, 71, 44, 45, 54, 55, 64, 65, 74, 75},
    {80, 81, 90, 91, 100, 101, 110, 111, 84, 85, 94, 95, 104, 105, 114, 115},
    {120, 121, 130, 131, 140, 141, 150, 151, 124, 125, 134, 135, 144, 145, 154, 155},
    {160, 161, 170, 171, 180, 181, 190, 191, 164, 165, 174, 175, 184, 185, 194, 195},
    {200, 201, 210, 211, 220, 221, 230, 231, 204, 205, 214, 215, 224, 225, 234, 235},
    {240, 241, 250, 251, 260, 261, 270, 271, 244, 245, 254, 255, 264, 265, 274, 275},
    {280, 281, 290, 291, 300, 301, 310, 311, 284, 285, 294, 295, 304, 305, 314, 315},
    {2, 3, 12, 13, 22, 23, 32, 33, 6, 7, 16, 17, 26, 27, 36, 37},
    {42, 43, 52, 53, 62, 63, 72, 73, 46, 47, 56, 57, 66, 67, 76, 77},
    {82, 83, 92, 93, 102, 103, 112, 113, 86, 87, 96, 97, 106, 107, 116, 117},
    {122, 123, 132, 133, 142, 143, 152, 153, 126, 127, 136, 137, 146, 147, 156, 157},
    {162, 163, 172, 173, 182, 183, 192, 193, 166, 167, 176, 177, 186, 187, 196, 197},
    {202, 203, 212, 213, 222, 223, 232, 233, 206, 207, 216, 217, 226, 227, 236, 237},
    {242, 243, 252, 253, 262, 263, 272, 273, 246, 247, 256, 257, 266, 267, 276, 277},
    {282, 283, 292, 293, 302, 303, 312, 313, 286, 287, 296, 297, 306, 307, 316, 317},
};
constexpr int kB16[16][8] = {
    {0, 40, 80, 120, 160, 200, 240, 280},   {1, 41, 81, 121, 161, 201, 241, 281},
    {10, 50, 90, 130, 170, 210, 250, 290},  {11, 51, 91, 131, 171, 211, 251, 291},
    {20, 60, 100, 140, 180, 220, 260, 300}, {21, 61, 101, 141, 181, 221, 261, 301},
    {30, 70, 110, 150, 190, 230, 270, 310}, {31, 71, 111, 151, 191, 231, 271, 311},
    {2, 42, 82, 122, 162, 202, 242, 282},   {3, 43, 83, 123, 163, 203, 243, 283},
    {12, 52, 92, 132, 172, 212, 252, 292},  {13, 53, 93, 133, 173, 213, 253, 293},
    {22, 62, 102, 142, 182, 222, 262, 302}, {23, 63, 103, 143, 183, 223, 263, 303},
    {32, 72, 112, 152, 192, 232, 272, 312}, {33, 73, 113, 153, 193, 233, 273, 313},
};

// mma.m16n8k8, .tf32. a_i: row groupID for i in {0, 2}, else groupID + 8; column threadID_in_group, + 4 for i >= 2.
// b_i: row threadID_in_group, + 4 for i = 1; column groupID.

constexpr int kA8[16][8] = {
    {0, 10, 20, 30, 2, 12, 22, 32},           {40, 50, 60, 70, 42, 52, 62, 72},
    {80, 90, 100, 110, 82, 92, 102, 112},     {120, 130, 140, 150, 122, 132, 142, 152},
    {160, 170, 180, 190, 162, 172, 182, 192}, {200, 210, 220, 230, 202, 212, 222, 232},
    {240, 250, 260, 270, 242, 252, 262, 272}, {280, 290, 300, 310, 282, 292, 302, 312},
    {1, 11, 21, 31, 3, 13, 23, 33},           {41, 51, 61, 71, 43, 53, 63, 73},
    {81, 91, 101, 111, 83, 93, 103, 113},     {121, 131, 141, 151, 123, 133, 143, 153},
    {161, 171, 181, 191, 163, 173, 183, 193}, {201, 211, 221, 231, 203, 213, 223, 233},
    {241, 251, 261, 271, 243, 253, 263, 273}, {281, 291, 301, 311, 283, 293, 303, 313},
};
constexpr int kB8[8][8] = {
    {0, 40, 80, 120, 160, 200, 240, 280},   {10, 50, 90, 130, 170, 210, 250, 290},
    {20, 60, 100, 140, 180, 220, 260, 300}, {30, 70, 110, 150, 190, 230, 270, 310},
    {1, 41, 81, 121, 161, 201, 241, 281},   {11, 51, 91, 131, 171, 211, 251, 291},
    {21, 61, 101, 141, 181, 221, 261, 301}, {31, 71, 111, 151, 191, 231, 271, 311},
};

// Sums of both. c_i: row groupID for i in {0, 1}, else groupID + 8; column 2 threadID_in_group + (i & 1).

constexpr int kSums[16][8] = {
    {0, 1, 10, 11, 20, 21, 30, 31},           {40, 41, 50, 51, 60, 61, 70, 71},
    {80, 81, 90, 91, 100, 101, 110, 111},     {120, 121, 130, 131, 140, 141, 150, 151},
    {160, 161, 170, 171, 180, 181, 190, 191}, {200, 201, 210, 211, 220, 221, 230, 231},
    {240, 241, 250, 251, 260, 261, 270, 271}, {280, 281, 290, 291, 300, 301, 310, 311},
    {2, 3, 12, 13, 22, 23, 32, 33},           {42, 43, 52, 53, 62, 63, 72, 73},
    {82, 83, 92, 93, 102, 103, 112, 113},     {122, 123, 132, 133, 142, 143, 152, 153},
    {162, 163, 172, 173, 182, 183, 192, 193}, {202, 203, 212, 213, 222, 223, 232, 233},
    {242, 243, 252, 253, 262, 263, 272, 273}, {282, 283, 292, 293, 302, 303, 312, 313},
};

// ldmatrix: lane l gets word l % 4 of row l / 4 of each matrix.

constexpr int kRowOfLane[32] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3,
                                4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7};
constexpr int kWordOfLane[32] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3,
                                 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};

struct Halves {
  static constexpr int kDepth = 16;
  static int a(int row, int k) { return kA16[row][k]; }
  static int b(int k, int column) { return kB16[k][column]; }
  static void put(uint32_t* words, int element, uint16_t v) {
    const int shift = element % 2 * 16;
    words[element / 2] = (words[element / 2] & ~(0xffffu << shift)) | uint32_t{v} << shift;
  }
};

struct Words {
  static constexpr int kDepth = 8;
  static int a(int row, int k) { return kA8[row][k]; }
  static int b(int k, int column) { return kB8[k][column]; }
  static void put(uint32_t* words, int element, float v) { words[element] = __float_as_uint(v); }
};

template <class T>
using LayoutOf = std::conditional_t<std::is_same<T, TF32>::value, Words, Halves>;

template <class T>
struct Operands {
  static constexpr int kDepth = LayoutOf<T>::kDepth;
  float a[16][kDepth] = {}, b[kDepth][8] = {}, sums[16][8] = {};
};

// One warp's multiply on fragments filled by the tables.
template <class T>
void multiply(Operands<T>& o) {
  using Layout = LayoutOf<T>;
  uint32_t a[32][4] = {}, b[32][2] = {};
  float sums[32][4] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < o.kDepth; ++k)
      Layout::put(a[Layout::a(row, k) / 10], Layout::a(row, k) % 10, T::operand(o.a[row][k]));
    for (int column = 0; column < 8; ++column)
      sums[kSums[row][column] / 10][kSums[row][column] % 10] = o.sums[row][column];
  }
  for (int k = 0; k < o.kDepth; ++k)
    for (int column = 0; column < 8; ++column)
      Layout::put(b[Layout::b(k, column) / 10], Layout::b(k, column) % 10, T::operand(o.b[k][column]));
  run(1, 32, 0, [&] { T::multiply(sums[lane()], a[lane()], b[lane()][0], b[lane()][1]); });
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column)
      o.sums[row][column] = sums[kSums[row][column] / 10][kSums[row][column] % 10];
}

// One element of `a` at a time: its row of the sums must be row k of `b`, all others zero.
template <class T>
void test_fragments() {
  constexpr int kDepth = Operands<T>::kDepth;
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < kDepth; ++k) {
      Operands<T> o;
      o.a[row][k] = 1;
      for (int i = 0; i < kDepth; ++i)
        for (int column = 0; column < 8; ++column) o.b[i][column] = static_cast<float>(1 + 8 * i + column);
      multiply(o);
      for (int r = 0; r < 16; ++r)
        for (int column = 0; column < 8; ++column)
          expect_equal("a[" + std::to_string(row) + "][" + std::to_string(k) + "] = 1, sums[" + std::to_string(r) +
                           "][" + std::to_string(column) + "]",
                       r == row ? 1 + 8 * k + column : 0, o.sums[r][column]);
    }
}

template <class T>
void test_product() {
  constexpr int kDepth = Operands<T>::kDepth;
  Random random{7};
  Operands<T> o;
  double expected[16][8], scale[16][8];
  for (auto& row : o.a)
    for (float& v : row) v = random.uniform();
  for (auto& row : o.b)
    for (float& v : row) v = random.uniform();
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      expected[row][column] = o.sums[row][column] = random.uniform();
      scale[row][column] = 1;
      for (int k = 0; k < kDepth; ++k) {
        const double term = static_cast<double>(T::to_float(T::operand(o.a[row][k]))) *
                            static_cast<double>(T::to_float(T::operand(o.b[k][column])));
        expected[row][column] += term;
        scale[row][column] += std::fabs(term);
      }
    }
  multiply(o);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      const double error = std::fabs(expected[row][column] - o.sums[row][column]) / scale[row][column];
      expect(error < 5e-7, "sums[" + std::to_string(row) + "][" + std::to_string(column) + "]: expected " +
                               std::to_string(expected[row][column]) + ", got " + std::to_string(o.sums[row][column]));
    }
}

void test_tf32_low_bits() {
  float sums[32][4] = {};
  const uint32_t one = 0x3f801fffu, two = 0x40001fffu;  // 1 and 2 with all of the bits that are ignored
  run(1, 32, 0, [&] { TF32::multiply(sums[lane()], {one, one, one, one}, two, two); });
  for (const auto& s : sums)
    for (const float v : s) expect_equal("sum of 8 products 1 * 2", 16, v);
}

void test_load_matrices() {
  // row r of matrix m lies in slot (5 (8 m + r) + 3) % 32
  uint32_t got[32][4];
  run(1, 32, 512, [&] {
    const int slot = (5 * lane() + 3) % 32;
    for (int word = 0; word < 4; ++word)
      set_word(4 * slot + word, static_cast<uint32_t>(100 * (lane() / 8) + 10 * (lane() % 8) + word));
    __syncwarp();
    load_matrices(got[lane()], shared_memory() + 16 * slot);
  });
  for (int l = 0; l < 32; ++l)
    for (int m = 0; m < 4; ++m)
      expect_equal("lane " + std::to_string(l) + ", word " + std::to_string(m),
                   100 * m + 10 * kRowOfLane[l] + kWordOfLane[l], got[l][m]);
}

void test_load_matrices_transposed() {
  // element (row r, column c) of matrix m is 256 m + 16 r + c
  uint32_t got[32][4];
  run(1, 32, 512, [&] {
    const int base = 256 * (lane() / 8) + 16 * (lane() % 8);
    for (int word = 0; word < 4; ++word)
      set_word(4 * lane() + word, static_cast<uint32_t>((base + 2 * word) | (base + 2 * word + 1) << 16));
    __syncwarp();
    load_matrices_transposed(got[lane()], shared_memory() + 16 * lane());
  });
  for (int l = 0; l < 32; ++l)
    for (int m = 0; m < 4; ++m) {
      const int first = 256 * m + 16 * (l % 4 * 2) + l / 4;
      expect_equal("lane " + std::to_string(l) + ", word " + std::to_string(m), first | (first + 16) << 16, got[l][m]);
    }
}

// ---- number formats -------------------------------------------------------------------------------------------------

struct Conversion {
  uint32_t from, to;
};

void test_float16() {
  const Conversion rounded[] = {
      {0x00000000, 0x0000}, {0x80000000, 0x8000}, {0x3f800000, 0x3c00},
      {0xc0000000, 0xc000}, {0x3f800fff, 0x3c00},  // below the tie
      {0x3f801000, 0x3c00}, {0x3f803000, 0x3c02},  // ties to even
      {0x3f801001, 0x3c01},                        // above the tie
      {0x3ffff000, 0x4000},                        // a tie that carries into the exponent
      {0x477fe000, 0x7bff}, {0x477fefff, 0x7bff},  // 65504 and what still rounds to it
      {0x477ff000, 0x7c00}, {0xc77ff000, 0xfc00},  // 65520 overflows
      {0x7f7fffff, 0x7c00}, {0x7f800000, 0x7c00}, {0xff800000, 0xfc00},
      {0x7fc00000, 0x7fff}, {0x7f800001, 0x7fff}, {0xffc00000, 0x7fff},  // NaN
      {0x38800000, 0x0400}, {0x387fc000, 0x03ff},                        // smallest normal, largest subnormal
      {0x387fe000, 0x0400}, {0x387fdfff, 0x03ff},                        // the tie between them
      {0x33800000, 0x0001}, {0xb3800000, 0x8001},                        // smallest subnormal
      {0x33c00000, 0x0002}, {0x34200000, 0x0002},                        // ties of 1.5 and 2.5 of it
      {0x33000000, 0x0000}, {0x33000001, 0x0001},                        // half of it, and above
      {0x00000001, 0x0000}, {0x807fffff, 0x8000},
  };
  for (const Conversion& c : rounded)
    expect_bits("half of " + hex(c.from), c.to, Float16::from_float(__uint_as_float(c.from)));
  const Conversion exact[] = {
      {0x0000, 0x00000000}, {0x8000, 0x80000000}, {0x0001, 0x33800000}, {0x8001, 0xb3800000},
      {0x03ff, 0x387fc000}, {0x0400, 0x38800000}, {0x3c00, 0x3f800000}, {0xc000, 0xc0000000},
      {0x7bff, 0x477fe000}, {0x7c00, 0x7f800000}, {0xfc00, 0xff800000},
  };
  for (const Conversion& c : exact)
    expect_bits("float of half " + hex(c.from), c.to,
                __float_as_uint(Float16::to_float(static_cast<uint16_t>(c.from))));
  for (const uint16_t nan : {0x7c01, 0x7e00, 0x7fff, 0xfe00})
    expect(std::isnan(Float16::to_float(nan)), "float of half " + hex(nan) + ": expected NaN");
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float v = Float16::to_float(static_cast<uint16_t>(bits));
    if (!std::isnan(v)) expect_bits("half of float of half " + hex(bits), bits, Float16::from_float(v));
  }
  expect_bits("pack(1, 2)", 0x40003c00, Float16::pack({1, 2}));
  expect_equal("unpack<0>", 1, Float16::unpack<0>(0x40003c00));
  expect_equal("unpack<1>", 2, Float16::unpack<1>(0x40003c00));
  expect_bits("operand", 0x3c01, Float16::operand(__uint_as_float(0x3f801001)));
}

void test_bfloat16() {
  const Conversion rounded[] = {
      {0x00000000, 0x0000}, {0x80000000, 0x8000}, {0x3f800000, 0x3f80}, {0xc0000000, 0xc000},
      {0x3f807fff, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f818000, 0x3f82}, {0x3f808001, 0x3f81},  // ties to even
      {0x3fff8000, 0x4000},                                              // a tie that carries into the exponent
      {0x7f7f7fff, 0x7f7f}, {0x7f7f8000, 0x7f80}, {0x7f7fffff, 0x7f80},  // overflow
      {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7fc00000, 0x7fff}, {0x7f800001, 0x7fff},
      {0xffffffff, 0x7fff},  // NaN
      {0x00010000, 0x0001}, {0x00008000, 0x0000}, {0x00018000, 0x0002}, {0x00008001, 0x0001},
      {0x007fffff, 0x0080},
  };
  for (const Conversion& c : rounded)
    expect_bits("bfloat16 of " + hex(c.from), c.to, BFloat16::from_float(__uint_as_float(c.from)));
  for (const uint16_t bits : {0x0000, 0x8000, 0x0001, 0x3f80, 0x7f80, 0xff80, 0x7fff})
    expect_bits("float of bfloat16", uint32_t{bits} << 16, __float_as_uint(BFloat16::to_float(bits)));
  expect_bits("pack(1, 2)", 0x40003f80, BFloat16::pack({1, 2}));
  expect_equal("unpack<0>", 1, BFloat16::unpack<0>(0x40003f80));
  expect_equal("unpack<1>", 2, BFloat16::unpack<1>(0x40003f80));
  expect_bits("operand", 0x3f81, BFloat16::operand(__uint_as_float(0x3f808001)));
}

void test_tf32() {
  const Conversion rounded[] = {
      {0x00000000, 0x00000000}, {0x80000000, 0x80000000}, {0x3f800000, 0x3f800000}, {0x3f802000, 0x3f802000},
      {0x3f800fff, 0x3f800000}, {0x3f801000, 0x3f802000}, {0xbf801000, 0xbf802000},  // ties away from zero
      {0x3f803000, 0x3f804000}, {0x3fffffff, 0x40000000},                            // a carry into the exponent
      {0x7f7fffff, 0x7f800000}, {0x7f800000, 0x7f800000}, {0xff800000, 0xff800000}, {0x00000fff, 0x00000000},
      {0x00001000, 0x00002000}, {0x007fffff, 0x00800000},
  };
  for (const Conversion& c : rounded) {
    expect_bits("tf32 of " + hex(c.from), c.to, TF32::pack({__uint_as_float(c.from)}));
    expect_bits("operand of " + hex(c.from), c.to, __float_as_uint(TF32::operand(__uint_as_float(c.from))));
  }
  for (const uint32_t nan : {0x7f800001u, 0x7fffffffu, 0xffc00000u}) {
    const uint32_t got = TF32::pack({__uint_as_float(nan)});
    expect(std::isnan(__uint_as_float(got)) && (got & 0x1fff) == 0, "tf32 of " + hex(nan) + ": got " + hex(got));
  }
  expect_bits("from_float", 0x3f801001, __float_as_uint(TF32::from_float(__uint_as_float(0x3f801001))));
  expect_equal("unpack<0>", 1, TF32::unpack<0>(0x3f800000));
}

// ---- copies ---------------------------------------------------------------------------------------------------------

alignas(16) const uint32_t kSource[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

void expect_words(const std::string& what, const std::vector<uint32_t>& expected, const uint32_t* got) {
  for (size_t i = 0; i < expected.size(); ++i) expect_bits(what + ", word " + std::to_string(i), expected[i], got[i]);
}

void test_copy_appears_in_the_wait() {
  uint32_t before[4], after[4];
  run(1, 32, 512, [&] {
    if (thread() != 0) return;
    for (int i = 0; i < 4; ++i) set_word(i, 77);
    copy_async<16>(shared_memory(), kSource, 16);
    commit_copies();
    for (int i = 0; i < 4; ++i) before[i] = word_at(i);
    wait_copies<0>();
    for (int i = 0; i < 4; ++i) after[i] = word_at(i);
  });
  expect_words("before the wait", {kFull, kFull, kFull, kFull}, before);
  expect_words("after the wait", {1, 2, 3, 4}, after);
}

void test_copy_groups() {
  uint32_t got[3][4];
  run(1, 32, 512, [&] {
    if (thread() != 0) return;
    const auto look = [&](int time) {
      for (int i = 0; i < 4; ++i) got[time][i] = word_at(i);
    };
    copy_async<4>(shared_memory(), kSource, 4);
    copy_async<4>(shared_memory() + 4, kSource + 1, 4);
    commit_copies();
    copy_async<4>(shared_memory() + 8, kSource + 2, 4);
    commit_copies();
    copy_async<4>(shared_memory() + 12, kSource + 3, 4);  // of no group yet
    wait_copies<1>();
    look(0);
    wait_copies<0>();
    look(1);
    commit_copies();
    wait_copies<0>();
    look(2);
  });
  expect_words("wait_copies<1> with two groups", {1, 2, kFull, kFull}, got[0]);
  expect_words("wait_copies<0>", {1, 2, 3, kFull}, got[1]);
  expect_words("the last one committed", {1, 2, 3, 4}, got[2]);
}

void test_copy_zeros() {
  uint32_t got[12];
  run(1, 32, 512, [&] {
    if (thread() != 0) return;
    copy_async<16>(shared_memory(), kSource, 6);
    copy_async<16>(shared_memory() + 16, nullptr, 0);
    copy_async<4>(shared_memory() + 32, kSource, 2);
    copy_async<4>(shared_memory() + 36, nullptr, 0);
    commit_copies();
    wait_copies<0>();
    for (int i = 0; i < 10; ++i) got[i] = word_at(i);
  });
  expect_words("bytes of 6, 0, 2 and 0", {1, 2, 0, 0, 0, 0, 0, 0, 1, 0}, got);
}

void test_copy_overwritten() {
  const Report words = {"overwrites", "under way", "[16, ", "that thread 0"};
  for (const int by : {0, 1})
    for (const bool copy : {false, true})
      expect_report(words, 64, 512, [=] {
        if (thread() == 0) {
          copy_async<16>(shared_memory() + 16, kSource, 16);
          commit_copies();
        }
        __syncthreads();
        if (warp() == by && lane() == 0) {
          if (copy)
            copy_async<16>(shared_memory() + 16, kSource, 16);
          else
            set_word(4, 1);
        }
        __syncthreads();
        wait_copies<0>();
      });
}

void test_copy_not_waited_for() {
  expect_report({"expected no copy under way, got 1", "uncommitted"}, 32, 512,
                [] { copy_async<4>(shared_memory() + 4 * lane(), kSource, 4); });
  expect_report({"expected no copy under way, got 1", "thread 3 of 32"}, 32, 512, [] {
    if (lane() == 3) copy_async<4>(shared_memory(), kSource, 4);
    commit_copies();
    wait_copies<1>();
  });
}

// ---- bounds, alignment, poison --------------------------------------------------------------------------------------

void test_bounds() {
  for (const int shared : {0, 100, 512, 48 * 1024}) {
    const auto at = [=](int offset) { return shared_memory() + offset; };
    const std::string within = "within the " + std::to_string(shared) + " of shared memory";
    const char* bounds = within.c_str();
    expect_report({bounds, "load_shared"}, 32, shared, [=] { load_shared<float>(at(shared)); });
    expect_report({bounds, "load_shared", "offset -4"}, 32, shared, [=] { load_shared<float>(at(-4)); });
    expect_report({bounds, "load_shared"}, 32, shared, [=] { load_shared<uint4>(at(shared / 16 * 16)); });
    expect_report({bounds, "store_shared"}, 32, shared, [=] { store_shared(at(shared), uint16_t{1}); });
    expect_report({bounds, "copy_async"}, 32, shared, [=] { copy_async<16>(at(shared / 16 * 16), nullptr, 0); });
    expect_report({bounds, "load_matrices"}, 32, shared, [=] {
      uint32_t words[4];
      load_matrices(words, at(shared / 16 * 16));
    });
  }
  run(1, 32, 100, [] { load_shared<float>(shared_memory() + 96); });
}

void test_alignment() {
  expect_report({"misaligned", "aligned to 4"}, 32, 512, [] { load_shared<float>(shared_memory() + 2); });
  expect_report({"misaligned", "aligned to 16"}, 32, 512, [] { load_shared<float4>(shared_memory() + 8); });
  expect_report({"misaligned", "aligned to 2"}, 32, 512, [] { store_shared(shared_memory() + 1, uint16_t{1}); });
  expect_report({"misaligned", "aligned to 16"}, 32, 512, [] { copy_async<16>(shared_memory() + 4, kSource, 16); });
  expect_report({"misaligned", "source"}, 32, 512, [] { copy_async<16>(shared_memory(), kSource + 1, 16); });
  expect_report({"misaligned", "aligned to 16"}, 32, 512, [] {
    uint32_t words[4];
    load_matrices(words, shared_memory() + 16 * lane() + (lane() == 9 ? 8 : 0));
  });
  run(1, 32, 512,
      [] { expect(reinterpret_cast<uintptr_t>(shared_memory()) % 128 == 0, "shared memory is not aligned to 128"); });
}

void test_poison() {
  for (int time = 0; time < 2; ++time) {
    uint32_t got[2][128];
    run(2, 32, 512, [&] {
      for (int i = lane(); i < 128; i += 32) {
        got[blockIdx.x][i] = word_at(i);
        set_word(i, 0);
      }
    });
    for (const auto& block : got)
      for (const uint32_t word : block) expect_bits("fresh shared memory", kFull, word);
  }
}

// What AddressSanitizer sees of a plain pointer past either end.
void test_redzones() {
#if defined(__SANITIZE_ADDRESS__)
  for (const int shared : {100, 512})
    for (const int offset : {-1, shared}) {
      const pid_t child = fork();
      if (child == 0) {
        std::fclose(stderr);
        close(2);
        run(1, 32, shared, [=] { *static_cast<volatile unsigned char*>(shared_memory() + offset); });
        _exit(0);
      }
      int status = 0;
      waitpid(child, &status, 0);
      expect(status != 0, "a read at offset " + std::to_string(offset) + " of " + std::to_string(shared) + " passed");
    }
#endif
}

// ---- barriers -------------------------------------------------------------------------------------------------------

// Warp 0 fills a buffer of 32 words for the others, `rounds` times.
void produce_and_consume(int consumers, int rounds, bool* right) {
  constexpr int kEmpty = 1, kFilled = 2;
  const int threads = 32 * (1 + consumers);
  if (warp() == 0) {
    for (int round = 0; round < rounds; ++round) {
      barrier_sync(kEmpty, threads);
      set_word(lane(), static_cast<uint32_t>(100 * round + lane()));
      barrier_arrive(kFilled, threads);
    }
  } else {
    for (int round = 0; round < rounds; ++round) {
      barrier_arrive(kEmpty, threads);
      barrier_sync(kFilled, threads);
      for (int i = 0; i < 32; ++i) *right &= word_at(i) == static_cast<uint32_t>(100 * round + i);
    }
  }
}

void test_named_barriers() {
  for (const std::string& order : kOrders) {
    const Order set(order);
    bool right = true;
    run(2, 128, 128, [&] { produce_and_consume(3, 5, &right); });
    expect(right, "order " + order + ": a consumer read another round's words");
  }
}

// Without the second barrier the consumers must be seen to read too early, or the test above shows nothing.
void test_named_barriers_are_needed() {
  bool right = true;
  run(1, 64, 128, [&] {
    if (warp() == 1) {
      barrier_sync(1, 64);
      set_word(lane(), 5);
    } else {
      barrier_arrive(1, 64);
      right &= word_at(lane()) == 5;
    }
  });
  expect(!right, "a reader that did not wait read the writer's words");
}

void test_deadlock() {
  expect_report({"deadlock", "barrier 3 has 32 arrivals of 64", "32 finished"}, 64, 0, [] {
    if (warp() == 1) barrier_sync(3, 64);
  });
  expect_report({"deadlock", "barrier 3 has 32 arrivals of 64", "32 finished"}, 64, 0, [] {
    if (warp() == 0) barrier_sync(3, 64);
  });
  expect_report({"deadlock", "barrier 0 has 32 arrivals of 64", "barrier 4 has 32 arrivals of 64"}, 64, 0, [] {
    if (warp() == 0)
      barrier_sync(4, 64);
    else
      __syncthreads();
  });
}

void test_barrier_misuse() {
  expect_report({"count mismatch", "barrier 1", "expected the 64", "got 96"}, 96, 0,
                [] { barrier_sync(1, warp() == 0 ? 64 : 96); });
  expect_report({"arrived twice", "barrier 1"}, 64, 0, [] {
    barrier_arrive(1, 64);
    barrier_arrive(1, 64);
  });
  expect_report({"expected a multiple of 32"}, 64, 0, [] { barrier_sync(1, 48); });
  expect_report({"expected a multiple of 32"}, 64, 0, [] { barrier_sync(1, 96); });
  expect_report({"expected an id from 0 to 15, got 16"}, 64, 0, [] { barrier_sync(16, 64); });
  expect_report({"diverged"}, 64, 0, [] { barrier_sync(lane() < 16 ? 1 : 2, 64); });
  expect_report({"whole warps", "only lanes 0-15 of warp 0"}, 64, 0, [] {
    if (lane() < 16) barrier_sync(1, 32);
  });
  expect_report({"__syncthreads_or"}, 64, 0, [] {
    if (warp() == 0)
      __syncthreads();
    else
      __syncthreads_or(1);
  });
}

void test_syncthreads_or() {
  for (const std::string& order : kOrders) {
    const Order set(order);
    int wrong = 0;
    run(1, 96, 0, [&] {
      for (int round = 0; round < 8; ++round) {
        const bool some = round % 3 == 1;
        wrong += (__syncthreads_or(some && thread() == 7 * round) != 0) != some;
      }
    });
    expect_equal("wrong answers", 0, wrong);
  }
}

// ---- operations of a whole warp -------------------------------------------------------------------------------------

template <class T>
void expect_shuffles(T unit) {
  for (const std::string& order : kOrders) {
    const Order set(order);
    T to[64], across[64], down[64];
    run(1, 64, 0, [&] {
      const T mine = static_cast<T>(thread()) * unit;
      to[thread()] = __shfl_sync(kFull, mine, 5);
      across[thread()] = __shfl_xor_sync(kFull, mine, 6);
      down[thread()] = __shfl_down_sync(kFull, mine, 4);
    });
    for (int i = 0; i < 64; ++i) {
      const int first = i / 32 * 32, l = i % 32;
      expect(to[i] == static_cast<T>(first + 5) * unit, "__shfl_sync, thread " + std::to_string(i));
      expect(across[i] == static_cast<T>(first + (l ^ 6)) * unit, "__shfl_xor_sync, thread " + std::to_string(i));
      expect(down[i] == static_cast<T>(l + 4 < 32 ? i + 4 : i) * unit, "__shfl_down_sync, thread " + std::to_string(i));
    }
  }
}

void test_shuffles() {
  expect_shuffles<int>(-3);
  expect_shuffles<unsigned>(0x01000001u);
  expect_shuffles<float>(0.37f);
  expect_shuffles<double>(1 + 0x1p-50);  // no float holds this
}

void test_any() {
  int wrong = 0;
  run(1, 64, 0, [&] {
    wrong += (__any_sync(kFull, thread() == 40) != 0) != (warp() == 1);
    wrong += __any_sync(kFull, 0) != 0;
  });
  expect_equal("wrong answers", 0, wrong);
}

void test_diverged_warps() {
  expect_report({"__syncwarp", "lanes 0-3 of it at __any_sync"}, 32, 0, [] {
    if (lane() < 4)
      __any_sync(kFull, 1);
    else
      __syncwarp();
  });
  expect_report({"multiply of BFloat16", "multiply of Float16"}, 32, 0, [] {
    float sums[4] = {};
    if (lane() % 2)
      Float16::multiply(sums, {}, 0, 0);
    else
      BFloat16::multiply(sums, {}, 0, 0);
  });
  expect_report({"the end of the kernel", "lanes 0 of it"}, 32, 0, [] {
    if (lane() != 0) __syncwarp();
  });
  expect_report({"end of the kernel", "lanes 0-30 of it waiting in __syncwarp"}, 32, 0, [] {
    if (lane() != 31) __syncwarp();
  });
  expect_report({"__syncwarp", "lanes 0 of it at a barrier"}, 32, 0, [] {
    if (lane() == 0) __syncthreads();
    __syncwarp();
  });
  expect_report({"barrier 0", "waiting in __syncwarp"}, 32, 0, [] {
    if (lane() == 0) __syncwarp();
    __syncthreads();
  });
  expect_report({"expected all lanes in the mask, got lanes 0-15"}, 32, 0, [] { __syncwarp(0xffff); });
}

// ---- races ----------------------------------------------------------------------------------------------------------
// By threads 0 and 32, the first ones of two warps, unless the kernel says otherwise.

template <class A, class B>
auto unordered(const A& a, const B& b) {
  return [=] {
    if (thread() == 0) a();
    if (thread() == 32) b();
  };
}

template <class A, class B>
auto separated(const A& a, const B& b) {
  return [=] {
    if (thread() == 0) a();
    __syncthreads();
    if (thread() == 32) b();
  };
}

void test_races() {
  const auto read = [] { word_at(3); };
  const auto write = [] { set_word(3, 1); };
  const auto rows = [] { load_shared<uint4>(shared_memory()); };
  expect_race({"load_shared of thread 0", "store_shared of thread 32", "bytes [12, 16)", "block 0 of 1"}, 64,
              unordered(read, write));
  expect_race({"store_shared of thread 0", "load_shared of thread 32", "bytes [12, 16)"}, 64, unordered(write, read));
  expect_race({"store_shared of thread 0", "store_shared of thread 32"}, 64, unordered(write, write));
  expect_race({"load_shared of thread 32"}, 64, unordered(write, rows));
  expect_no_race(64, unordered(read, read));
  expect_no_race(64, unordered(write, [] { word_at(4); }));
  for (const bool first : {false, true})
    for (const bool second : {false, true})
      expect_no_race(64, separated([=] { first ? write() : read(); }, [=] { second ? write() : read(); }));
  // without the log such a kernel passes
  run(1, 64, 1024, unordered(write, write));
}

void test_race_load_matrices() {
  const auto kernel = [](bool barrier) {
    return [=] {
      if (warp() == 0) {
        uint32_t words[4];
        load_matrices(words, shared_memory() + 16 * lane());
      }
      if (barrier) __syncthreads();
      if (thread() == 40) set_word(4 * 13 + 2, 1);  // of the row that lane 13 names
    };
  };
  expect_race({"load_matrices of thread 13", "store_shared of thread 40"}, 64, kernel(false));
  expect_no_race(64, kernel(true));
}

void test_races_and_barriers() {
  expect_no_race(128, [] {
    bool right = true;
    produce_and_consume(3, 4, &right);
  });
  // an order that two barriers pass on
  expect_no_race(96, [] {
    if (thread() == 0) set_word(0, 1);
    if (warp() == 0) barrier_arrive(1, 64);
    if (warp() == 1) {
      barrier_sync(1, 64);
      barrier_arrive(2, 64);
    }
    if (warp() == 2) {
      barrier_sync(2, 64);
      if (lane() == 0) set_word(0, 2);
    }
  });
  // who only arrives learns nothing
  expect_race({"store_shared of thread 0", "load_shared of thread 63"}, 64, [] {
    if (thread() == 0) set_word(0, 1);
    if (warp() == 0) barrier_sync(1, 64);
    if (warp() == 1) {
      barrier_arrive(1, 64);
      if (lane() == 31) word_at(0);  // in some orders its arrival was the last one
    }
  });
  // what follows the arrival is not covered by it
  expect_race({"store_shared of thread 0", "load_shared of thread 32"}, 64, [] {
    if (warp() == 0) {
      barrier_arrive(1, 64);
      if (lane() == 0) set_word(0, 1);
    } else {
      barrier_sync(1, 64);
      if (lane() == 0) word_at(0);
    }
  });
  // a barrier of other warps orders nothing
  expect_race({"store_shared of thread 0", "store_shared of thread 64"}, 96, [] {
    if (thread() == 0) set_word(0, 1);
    if (warp() < 2) barrier_sync(1, 64);
    if (thread() == 64) set_word(0, 1);
  });
}

void test_races_in_a_warp() {
  expect_no_race(64, [] {
    for (int round = 0; round < 3; ++round) {
      set_word(thread(), 1);
      __syncwarp();
      word_at(thread() ^ 1);
      __syncwarp();
    }
    __syncthreads();
    word_at(thread() ^ 32);
  });
  expect_race({"store_shared of thread 0", "load_shared of thread 1"}, 32, [] {
    if (lane() == 0) set_word(0, 1);
    __shfl_sync(kFull, 1, 0);  // orders nothing
    if (lane() == 1) word_at(0);
  });
  expect_race({"store_shared of thread 0", "load_shared of thread 32"}, 64, [] {
    if (thread() == 0) set_word(0, 1);
    __syncwarp();
    if (thread() == 32) word_at(0);
  });
}

void test_races_in_a_word() {
  const auto half = [](int i) { store_shared(shared_memory() + 2 * i, uint16_t{1}); };
  const auto byte = [](int i) { store_shared(shared_memory() + i, uint8_t{1}); };
  expect_no_race(64, unordered([=] { half(0); }, [=] { half(1); }));
  expect_no_race(64, unordered([=] { byte(2); }, [=] { byte(3); }));
  expect_race({"race"}, 64, unordered([=] { byte(3); }, [=] { half(1); }));
  expect_race({"race"}, 64, unordered([=] { half(1); }, [] { word_at(0); }));
  expect_race({"race"}, 64, unordered([] { set_word(0, 1); }, [=] { byte(2); }));
  // whole again after a write of all of it, and apart again
  expect_no_race(64, [=] {
    for (int round = 0; round < 3; ++round) {
      if (lane() == 0) half(warp());
      __syncthreads();
      word_at(0);
      __syncthreads();
      if (thread() == 32) set_word(0, 1);
      __syncthreads();
    }
  });
  expect_race({"load_shared of thread 5", "store_shared of thread 32"}, 64, [=] {
    if (lane() == 0) half(warp());
    __syncthreads();
    if (thread() == 32) set_word(0, 1);
    if (thread() == 5) word_at(0);
  });
  expect_race({"load_shared of thread 5", "store_shared of thread 32"}, 64, [=] {
    if (lane() == 0) half(warp());
    __syncthreads();
    if (thread() == 5) word_at(0);
    if (thread() == 32) half(1);
  });
}

void test_races_of_many_readers() {
  for (const int readers : {2, 3, 8, 9, 10, 64})
    for (const bool read_before : {false, true}) {
      const auto kernel = [=](bool barrier) {
        return [=] {
          if (read_before) word_at(0);
          __syncthreads();
          if (thread() < readers) word_at(0);
          if (barrier) __syncthreads();
          if (thread() == 70) set_word(0, 1);
          __syncthreads();
          word_at(0);
        };
      };
      expect_no_race(96, kernel(true));
      expect_race({"load_shared of thread", "store_shared of thread 70"}, 96, kernel(false));
    }
  // the writer comes after all readers but one, which was the first or the last to read
  for (const int readers : {1, 2, 7, 8, 9, 31}) {
    expect_race({"load_shared of thread 0", "store_shared of thread 63"}, 64, [=] {
      if (thread() == 0 || (warp() == 1 && lane() < readers)) word_at(0);
      if (warp() == 1) __syncwarp();
      if (thread() == 63) set_word(0, 1);
    });
    expect_race({"load_shared of thread 32", "store_shared of thread 31"}, 64, [=] {
      if (thread() < readers) word_at(0);
      if (warp() == 0) barrier_sync(1, 64);
      if (warp() == 1) barrier_arrive(1, 64);
      if (thread() == 32) word_at(0);
      if (thread() == 31) set_word(0, 1);
    });
  }
}

void test_races_of_copies() {
  const auto copy = [] {
    copy_async<16>(shared_memory(), kSource, 16);
    commit_copies();
    wait_copies<0>();
  };
  expect_race({"load_shared of thread 32", "copy_async of thread 0"}, 64, unordered(copy, [] { word_at(3); }));
  expect_no_race(64, separated([] { word_at(3); }, copy));
  expect_no_race(64, separated(copy, [] { word_at(3); }));
  // a copy into the buffer that is still being read
  expect_race({"load_shared of thread 33", "copy_async of thread 0"}, 64, [=] {
    if (thread() == 0) copy();
    __syncthreads();
    if (thread() == 33) word_at(1);
    if (thread() == 0) copy();
  });
  // waited for after the barrier, so there for nobody else
  const auto late = [] {
    if (thread() == 0) {
      copy_async<16>(shared_memory(), kSource, 16);
      commit_copies();
    }
    __syncthreads();
    if (thread() == 0) wait_copies<0>();
    if (thread() == 32) word_at(3);
  };
  const Races races;
  for (const std::string& order : kOrders) {
    const Order set(order);
    expect_report({"copy", "thread 0"}, 64, 512, late);
  }
  expect_report({"load_shared reads shared bytes [12, 16)", "that thread 0 has issued"}, 64, 512, [] {
    if (thread() == 0) {
      copy_async<16>(shared_memory(), kSource, 16);
      commit_copies();
      word_at(3);
    }
  });
}

// ---- launches -------------------------------------------------------------------------------------------------------

// Two warps load tiles of 64 words one ahead, and sum them up.
uint32_t pipelined_sum(const uint32_t* from, int tiles) {
  const auto load = [&](int tile) {
    if (tile < tiles) copy_async<4>(shared_memory() + 256 * (tile % 2) + 4 * thread(), from + 64 * tile + thread(), 4);
    commit_copies();
  };
  uint32_t sum = 0;
  load(0);
  for (int tile = 0; tile < tiles; ++tile) {
    load(tile + 1);
    wait_copies<1>();
    __syncthreads();
    for (int i = 0; i < 64; ++i) sum = 31 * sum + word_at(tile % 2 * 64 + i);
    __syncthreads();  // the next round's copy overwrites what is being read
  }
  return sum;
}

void expect_pipelined_sum(unsigned blocks) {
  std::vector<uint32_t> from(64 * 5), got(64 * blocks);
  Random random{3};
  uint32_t expected = 0;
  for (uint32_t& v : from) {
    v = random.bits();
    expected = 31 * expected + v;
  }
  const uint32_t* source = from.data();
  run(blocks, 64, 512, [&got, source] { got[64 * blockIdx.x + threadIdx.x] = pipelined_sum(source, 5); });
  for (const uint32_t v : got) expect_bits("sum", expected, v);
}

void test_orders() {
  for (const char* races : {"0", "1"})
    for (const std::string& order : kOrders) {
      const Setting log("RADCONV_EMULATION_RACES", races);
      const Order set(order);
      expect_pipelined_sum(3);
    }
  std::vector<std::vector<unsigned>> seen;
  for (const std::string& order : kOrders) {
    const Order set(order);
    std::vector<unsigned> ran;
    run(4, 64, 0, [&] { ran.push_back(64 * blockIdx.x + threadIdx.x); });
    expect(std::find(seen.begin(), seen.end(), ran) == seen.end(), "order " + order + " is another order's");
    seen.push_back(ran);
    std::sort(ran.begin(), ran.end());
    for (unsigned i = 0; i < 256; ++i) expect_equal("threads that ran", i, ran.at(i));
  }
  expect(std::is_sorted(seen[0].begin(), seen[0].end()), "forward: not in order");
  expect(std::is_sorted(seen[1].rbegin(), seen[1].rend()), "backward: not in reverse order");
  const Order wrong("sideways");
  expect_report({"RADCONV_EMULATION_ORDER", "sideways"}, 32, 0, [] {});
}

void test_host_threads() {
  std::vector<std::string> errors(4);
  std::vector<std::thread> hosts;
  for (std::string& error : errors)
    hosts.emplace_back([&error] {
      try {
        for (int i = 0; i < 20; ++i) {
          expect_pipelined_sum(2);
          expect_report({"deadlock"}, 96, 0, [] {
            if (warp() == 1) __syncthreads();
          });
        }
      } catch (const std::exception& e) {
        error = e.what();
      }
    });
  for (std::thread& host : hosts) host.join();
  for (const std::string& error : errors) expect(error.empty(), error);
}

void test_launch_after_failure() {
  const auto good = [] {
    expect_pipelined_sum(2);
    bool right = true;
    run(1, 128, 128, [&] { produce_and_consume(3, 3, &right); });
    expect(right, "a wrong result after a failed launch");
  };
  for (const char* log : {"0", "1"}) {
    const Setting races("RADCONV_EMULATION_RACES", log);
    for (int time = 0; time < 3; ++time) {
      expect_report({"deadlock"}, 128, 512, [] {
        if (warp() == 2) barrier_sync(5, 64);
        if (warp() == 0) __syncthreads();
      });
      good();
      // copies, barriers and warps in the middle of something
      expect_report({"out of bounds"}, 128, 512, [] {
        copy_async<4>(shared_memory() + 4 * thread(), kSource, 4);
        commit_copies();
        if (warp() == 0) barrier_arrive(3, 64);
        if (warp() == 1) barrier_sync(4, 64);
        if (warp() == 2) {
          if (lane() == 31) load_shared<int>(shared_memory() + 512);
          __syncwarp();
        }
        __syncthreads();
      });
      good();
    }
  }
  struct Custom {};
  bool caught = false;
  try {
    run(1, 64, 0, [] {
      if (thread() == 40) throw Custom();
      __syncthreads();
    });
  } catch (const Custom&) {
    caught = true;
  }
  expect(caught, "the kernel's own exception did not arrive");
  good();
}

void test_indices() {
  std::vector<unsigned> got(3 * 96 * 4);
  run(3, 96, 0, [&] {
    unsigned* mine = &got[4 * (96 * blockIdx.x + threadIdx.x)];
    mine[0] = blockIdx.x, mine[1] = threadIdx.x, mine[2] = gridDim.x, mine[3] = blockDim.x;
    __syncthreads();
    expect(mine[1] == threadIdx.x, "threadIdx.x changed over a barrier");
  });
  for (unsigned block = 0; block < 3; ++block)
    for (unsigned t = 0; t < 96; ++t) {
      const unsigned* mine = &got[4 * (96 * block + t)];
      expect(mine[0] == block && mine[1] == t && mine[2] == 3 && mine[3] == 96, "wrong indices");
    }
}

void test_refused_launches() {
  const auto idle = [] {};
  const Body nothing = idle;
  const auto touch = [] { set_word(60 * 256 - 1, 1); };
  const Body large = touch;
  expect(launch(0, 32, 0, nothing) == cudaErrorInvalidConfiguration, "no blocks were accepted");
  expect(cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess, "last error");
  expect(launch(1, 1056, 0, nothing) == cudaErrorInvalidConfiguration, "1056 threads were accepted");
  expect(launch(1, 32, 60 * 1024, large) == cudaErrorInvalidValue, "60 KiB were accepted without prepare_kernel");
  expect(prepare_kernel(kernel<Body, 1024>, 60 * 1024) == cudaSuccess, "prepare_kernel refused 60 KiB");
  expect(launch(1, 32, 60 * 1024, large) == cudaSuccess, "60 KiB were refused after prepare_kernel");
  expect(launch(1, 32, 61 * 1024, large) == cudaErrorInvalidValue, "more than prepare_kernel allowed was accepted");
  expect(prepare_kernel(kernel<Body, 1024>, 164 * 1024) == cudaErrorInvalidValue, "164 KiB were accepted");
  int limit = 0;
  expect(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess, "attribute");
  expect_equal("shared memory of a block", 163 * 1024, limit);
  (void)cudaGetLastError();
}

// ---- the list -------------------------------------------------------------------------------------------------------

struct Test {
  const char* name;
  void (*run)();
};

const Test kTests[] = {
    {"fragments_float16", test_fragments<Float16>},
    {"fragments_bfloat16", test_fragments<BFloat16>},
    {"fragments_tf32", test_fragments<TF32>},
    {"product_float16", test_product<Float16>},
    {"product_bfloat16", test_product<BFloat16>},
    {"product_tf32", test_product<TF32>},
    {"tf32_low_bits", test_tf32_low_bits},
    {"load_matrices", test_load_matrices},
    {"load_matrices_transposed", test_load_matrices_transposed},
    {"float16", test_float16},
    {"bfloat16", test_bfloat16},
    {"tf32", test_tf32},
    {"copy_appears_in_the_wait", test_copy_appears_in_the_wait},
    {"copy_groups", test_copy_groups},
    {"copy_zeros", test_copy_zeros},
    {"copy_overwritten", test_copy_overwritten},
    {"copy_not_waited_for", test_copy_not_waited_for},
    {"bounds", test_bounds},
    {"alignment", test_alignment},
    {"poison", test_poison},
    {"redzones", test_redzones},
    {"named_barriers", test_named_barriers},
    {"named_barriers_are_needed", test_named_barriers_are_needed},
    {"deadlock", test_deadlock},
    {"barrier_misuse", test_barrier_misuse},
    {"syncthreads_or", test_syncthreads_or},
    {"shuffles", test_shuffles},
    {"any", test_any},
    {"diverged_warps", test_diverged_warps},
    {"races", test_races},
    {"race_load_matrices", test_race_load_matrices},
    {"races_and_barriers", test_races_and_barriers},
    {"races_in_a_warp", test_races_in_a_warp},
    {"races_in_a_word", test_races_in_a_word},
    {"races_of_many_readers", test_races_of_many_readers},
    {"races_of_copies", test_races_of_copies},
    {"orders", test_orders},
    {"host_threads", test_host_threads},
    {"launch_after_failure", test_launch_after_failure},
    {"indices", test_indices},
    {"refused_launches", test_refused_launches},
};

}  // namespace

int main(int count, char** arguments) {
  unsetenv("RADCONV_EMULATION_ORDER");
  unsetenv("RADCONV_EMULATION_RACES");
  const std::vector<std::string> wanted(arguments + 1, arguments + count);
  if (wanted == std::vector<std::string>{"--list"}) {
    for (const Test& test : kTests) std::puts(test.name);
    return 0;
  }
  for (const std::string& name : wanted)
    if (std::none_of(std::begin(kTests), std::end(kTests), [&](const Test& test) { return name == test.name; })) {
      std::printf("FAILED %s: no such test\n", name.c_str());
      return 1;
    }
  int status = 0;
  for (const Test& test : kTests) {
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), test.name) == wanted.end()) continue;
    try {
      test.run();
      std::printf("ok %s\n", test.name);
    } catch (const std::exception& e) {
      std::printf("FAILED %s: %s\n", test.name, e.what());
      status = 1;
    }
    std::fflush(stdout);
  }
  return status;
}
