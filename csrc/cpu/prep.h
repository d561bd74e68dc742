// The small algebra around the kernels: profile, factorisation P = L Q, folding L into the weights, and turning sums
// over basis functions back into gradients.  All in double: the condition number of L passes 1e4.

#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "../radconv.h"

namespace radconv::cpu {

using Matrix = std::vector<double>;  // row-major

// 64-byte aligned memory, not initialised.
struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;
Buffer allocate(int64_t floats);

struct Profile {
  Matrix value;  // (n, buckets)
  Matrix slope;  // (n, buckets) derivative by the ring's sigma; empty for families without sigma
};

Profile profile_of(const RingModel& model, const float* parameter);

// P = L Q, the rows of Q orthonormal over the taps (bucket multiplicities as weights) or zero.
// With as many rings as buckets, or more, Q is the identity and L is P.
struct Factors {
  int rows;      // of Q
  Matrix mix;    // L: (n, rows)
  Matrix basis;  // Q: (rows, buckets); empty: the identity
};

Factors factorise(const RingModel& model, const Matrix& profile);

// Rows of a product's left side in blocks of `block` rows: (ceil(rows / block), columns, block), missing rows zero.
inline int64_t packed_size(int64_t rows, int64_t columns, int64_t block) {
  return (rows + block - 1) / block * block * columns;
}
void pack_rows(const Matrix& matrix, int64_t rows, int64_t columns, int64_t block, float* to);

// The basis of the weight gradient, and how sums over it become gradients.
struct GradientBasis {
  int rows;             // m
  Matrix basis;         // (m, buckets); empty: the identity
  Matrix to_w;          // (n, m): grad_w = S to_w^T
  Matrix to_parameter;  // (n, m) for sigma: grad_sigma_i = sum_m to_parameter[i, m] (w^T S)[i, m]; empty: w^T S itself
};

GradientBasis gradient_basis(const RingModel& model, const Profile& profile, bool want_parameter);

}  // namespace radconv::cpu
