// Where pixels lie: what the kernels are told about it, and the planners' common ground.  Plain C++, no CUDA.

#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda/profile_params.h"
#include "radconv.h"

namespace radconv::cuda {

constexpr int kTileHeight = 8, kTileWidth = 16;  // of kernels whose size is known at compile time
constexpr int kWords = 8;                        // of one pixel in a chunk of channels: 16 halves or 8 floats
constexpr int kPixelBytes = 4 * kWords;
constexpr unsigned kOutside = UINT32_MAX;  // place of a pixel that is zero
constexpr int kPlaceBytes = 64;

// What tensors hold and how the matrix units multiply it.
enum class Format : int {
  kFloat16,
  kBFloat16,
  kTF32,     // float32 tensors, operands rounded to 10 bits
  kFloat32,  // float32 tensors, operands split in two
};

// How channels of a pixel come into shared memory.
enum class Loader : int {
  kVector,  // 16 bytes at a time
  kWord,    // 4 bytes at a time
  kScalar,  // one element at a time: half types in contiguous layout, or at odd addresses
};

constexpr int kMostOutputs = 128;       // of a block
constexpr float kShrink = 1.0f / 1024;  // of float16 sums in a second attempt
constexpr int kGroupThreads = 128;      // that copy pixels together

struct Geometry {
  const void* x;
  const int* tables;  // on the device, see Tables
  int64_t x_strides[5];

  // An axis' outputs fall into classes: output `classes * j + r` meets the taps from input `origin[r] + step * stride *
  // j` on, at every `step`-th position.
  int in_size[3], out_size[3], classes[3], step[3], stride[3];
  int tile[3], tiles[3], halo[3];
  bool wrap;
  int item;  // bytes of an element

  int channels, groups;  // channels of one group
  int shells;

  // Tables: ints from these places on
  int origins[3];      // one per class
  int starts, taps;    // of each class' shells in the taps; bytes in the halo.  Kernels of any size only
  int tap_classes[3];  // classes that have tables of their own, else 1

  Loader loader;
};

// A convolution that the kernels can't do; what() is one sentence without a full stop.
struct Unservable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr int64_t kMostInt = INT32_MAX;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int item_bytes(DType type) { return type == DType::kFloat32 ? 4 : 2; }

// `exact`: float32 is multiplied as such, not in TF32.
Format format_of(DType type, bool exact);

// Throws Unservable, naming `what`, when it doesn't fit.
int as_int(int64_t value, const char* what);

// ---- one axis: residue classes --------------------------------------------------------------------------------------
// Outputs `classes * j + r` meet tap t at input `origin[r] + step * (stride * j + offset[r][t])`, where offset is -1
// for taps that meet no input.  Dilation vanishes in the step; an upsampled input leaves each class some of the taps.

struct AxisPlan {
  int64_t classes = 1, step = 1, stride = 1;
  int64_t span = 1;                          // largest offset, plus 1
  bool differ = false;                       // whether classes have different taps
  std::vector<int64_t> origin;               // (classes)
  std::vector<std::vector<int64_t>> offset;  // (classes or 1, taps)
};

using AxisPlans = std::array<AxisPlan, 3>;

AxisPlans plan_axes(const ConvShape& shape);

// ---- kernel sizes ---------------------------------------------------------------------------------------------------

struct KernelSize {
  int k, depth;  // 0, 0: any size

  bool any() const { return k == 0; }
};

// Of the compiled kernels, any size last.
const std::vector<KernelSize>& kernel_sizes();

// The compiled kernel for a problem, and the bucket of each of its shells.
struct Chosen {
  KernelSize size;
  std::vector<int> columns;
};

Chosen choose_kernel(const ConvShape& shape, const RingModel& model, const AxisPlans& axes);
Chosen any_size(const RingModel& model);

// Every size of a tile of up to so many pixels.
std::vector<std::array<int, 3>> tiles_of(int pixels);

int64_t taps_of(const RingModel& model);

// How many groups of few channels share a chunk and a block of outputs, their weights being zero across: a divisor of
// the number of groups.
int merged_groups(const ConvShape& shape, int chunk);
ConvShape merge_groups(const ConvShape& shape, int merged);

// ---- tables ---------------------------------------------------------------------------------------------------------

// Numbers that kernels read from the device, 8-byte aligned; `add` returns where they begin, in ints.
class Tables {
 public:
  int add(const std::vector<double>& values);
  int add(const std::vector<int32_t>& values);
  std::vector<int32_t> take() { return std::move(ints_); }

 private:
  std::vector<int32_t> ints_;
};

// ---- filling in a Geometry ------------------------------------------------------------------------------------------

// Strides of a tensor of a convolution's batch and sizes; 0 along axes of one element, whose stride has no meaning.
enum class Side { kInput, kOutput };
void copy_strides(int64_t (&to)[5], const Strides& from, const ConvShape& shape, Side side);

// All but tiles, tables and pointers.
void describe(Geometry& g, const ConvShape& shape, const AxisPlans& axes, const Strides& x, int shells);

// The halo of a tile of this size, and how many tiles there are along each axis and in all.
std::array<int64_t, 3> halo_of(const AxisPlans& axes, const std::array<int, 3>& tile);
int64_t tiles_of_image(const Geometry& g);
int64_t set_tile(Geometry& g, const AxisPlans& axes, const std::array<int, 3>& tile);

// Tables of the geometry; those of taps, which need the tile, only for kernels of any size.
void tabulate(Geometry& g, Tables& tables, const ConvShape& shape, const RingModel& model, const AxisPlans& axes,
              bool any_size);

// What kernels are told about the profile, but its parameter; `columns` is the bucket of each shell.
ProfileParams describe_profile(const RingModel& model, const std::vector<int>& columns, Tables& tables);

// Strides of w: (outputs, inputs per group, rings), or with `transpose` (inputs, outputs per group, rings).
WeightParams describe_weights(const ConvShape& shape, int rings, bool transpose);

// Throws Unservable where offsets within a tile's halo, or with circular padding within an image, exceed 32 bits.
void check_offsets(const Geometry& g);

// How channels come into shared memory: a group's channels of a tensor at this address, strides in elements.
Loader loader_of(const void* data, const int64_t (&strides)[5], int groups, int channels, int item);

}  // namespace radconv::cuda
