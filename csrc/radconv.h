// The whole interface of the native core: plain sizes and raw pointers, nothing of PyTorch.
//
// Every problem is three-dimensional here; 1D and 2D have leading axes of size 1 and a kernel depth (and height) of 1.

#pragma once

#include <cstdint>
#include <vector>

namespace radconv {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// How the native core makes the profile P (n rings x buckets).
enum class Family : int {
  kGaussian = 0,  // parameter: sigma (n)
  kBanded = 1,    // parameter: sigma (n); buckets are bands
  kIdentity = 2,  // no parameter: ring i is bucket i
  kCustom = 3,    // parameter: P itself (n, buckets)
};

// One axis of a convolution.  Output element j meets tap t at virtual position v = stride * j + dilation * t - low; the
// input sits at every `upsample`-th virtual position and zeros are elsewhere.  `low` may be negative (a crop).
struct Axis {
  int64_t in = 1;
  int64_t out = 1;
  int64_t kernel = 1;
  int64_t stride = 1;
  int64_t upsample = 1;
  int64_t dilation = 1;
  int64_t low = 0;
};

struct ConvShape {
  Axis axis[3];       // depth, height, width
  bool wrap = false;  // circular padding
  int64_t batch = 0;
  int64_t groups = 1;
  int64_t in_per_group = 1;
  int64_t out_per_group = 1;
  DType dtype = DType::kFloat32;  // of input and output
};

// Which taps share one kernel value, and how rings weigh them.
struct RingModel {
  Family family = Family::kIdentity;
  int rings = 1;
  int buckets = 1;
  std::vector<int> bucket;     // (kernel depth * height * width), -1 outside the support
  std::vector<double> centre;  // (n) ring centres; gaussian only
  std::vector<double> radius;  // (buckets) radii; gaussian only
  double sigma_min = 0, sigma_max = 0;
};

struct Strides {
  int64_t of[5];  // batch, channel, depth, height, width; in elements
};

namespace cpu {

// y = conv(x, w P) + bias.  False when x, w or the parameter holds NaN or Inf, or a sum overflows; y is then not
// meaningful.
// `transpose` reads w as (in, out): w is (groups * in_per_group, out_per_group, n), as the input gradient and the
// transposed convolution need it; otherwise (groups * out_per_group, in_per_group, n).
bool conv(const ConvShape& shape, const RingModel& model, bool transpose, const void* x, const Strides& x_strides,
          const float* w,
          const float* parameter,  // sigma or P; null for families without
          const float* bias,       // (O) or null
          void* y, const Strides& y_strides, int threads);

// Gradients by w and by the parameter, from the input and the gradient of the output of `conv` with the same shape.
// Either may be null.  False as for `conv`.
bool weight_gradient(const ConvShape& shape, const RingModel& model, bool transpose, const void* x,
                     const Strides& x_strides, const void* grad, const Strides& grad_strides, const float* w,
                     const float* parameter,
                     float* grad_w,          // like w, or null
                     float* grad_parameter,  // like parameter, or null
                     int threads);

// Instruction sets compiled in that this machine runs, best last; the one in use.
std::vector<const char*> available_isas();
const char* current_isa();

}  // namespace cpu
}  // namespace radconv
