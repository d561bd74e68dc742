// The small algebra around the kernels: profile, factorisation P = L Q, folding L into the weights, and turning sums
// over basis functions back into gradients.  All in double: the condition number of L passes 1e4.

#pragma once

#include <vector>

#include "../radconv.h"

namespace radconv::cpu {

using Matrix = std::vector<double>;  // row-major

struct Profile {
  Matrix value;  // (n, buckets)
  Matrix slope;  // (n, buckets) derivative by the ring's sigma; empty for families without sigma
};

Profile profile_of(const RingModel& model, const float* parameter);

// P = L Q, the rows of Q orthonormal over the taps (bucket multiplicities as weights) or zero.
// With more rings than buckets Q is diagonal and L takes the rest.
struct Factors {
  int rows;      // of Q
  Matrix mix;    // L: (n, rows)
  Matrix basis;  // Q: (rows, buckets)
};

Factors factorise(const RingModel& model, const Matrix& profile);

// w as the kernels want it.
struct WeightView {
  const float* w;
  bool transpose;  // (G * I, O, n) instead of (G * O, I, n)
  int64_t groups, in_per_group, out_per_group;
  int rings;

  int64_t offset(int64_t group, int64_t out, int64_t in) const {
    const int64_t major = transpose ? group * in_per_group + in : group * out_per_group + out;
    const int64_t minors = transpose ? out_per_group : in_per_group;
    return (major * minors + (transpose ? out : in)) * rings;
  }
};

// Rows of a product's left side in blocks of `block` rows: (ceil(rows / block), columns, block), missing rows zero.
inline int64_t packed_size(int64_t rows, int64_t columns, int64_t block) {
  return (rows + block - 1) / block * block * columns;
}
void pack_rows(const Matrix& matrix, int64_t rows, int64_t columns, int64_t block, float* to);

// w times `matrix` (n, m), rounded to float32 once and packed: (groups, ceil(O' / block), I * m, block).
void fold_weights(const WeightView& view, const Matrix& matrix, int64_t m, int64_t block, float* to, int threads);

// The basis of the weight gradient, and how sums over it become gradients.
struct GradientBasis {
  int rows;             // m
  Matrix basis;         // (m, buckets)
  Matrix to_w;          // (n, m): grad_w = S to_w^T
  Matrix to_parameter;  // (n, m) for sigma: grad_sigma_i = sum_m to_parameter[i, m] (w^T S)[i, m]; empty: w^T S itself
};

GradientBasis gradient_basis(const RingModel& model, const Profile& profile, bool want_parameter);

// sums: (groups, I * m, pitch), output channels last.
void finish_gradients(const WeightView& view, const RingModel& model, const GradientBasis& basis, const float* sums,
                      int64_t pitch, float* grad_w, float* grad_parameter, int threads);

}  // namespace radconv::cpu
