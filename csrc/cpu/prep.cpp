#include "prep.h"

#include <algorithm>
#include <cmath>
#include <new>

#include "../profile.h"

namespace radconv::cpu {
namespace {

std::vector<int> multiplicities(const RingModel& model) {
  std::vector<int> count(model.buckets, 0);
  for (int b : model.bucket)
    if (b >= 0) ++count[b];
  return count;
}

}  // namespace

Buffer allocate(int64_t floats) {
  const size_t bytes = static_cast<size_t>((std::max<int64_t>(floats, 16) * 4 + 63) / 64 * 64);
  void* p = std::aligned_alloc(64, bytes);
  if (p == nullptr) throw std::bad_alloc();
  return Buffer(static_cast<float*>(p));
}

Profile profile_of(const RingModel& model, const float* parameter) {
  const int n = model.rings, buckets = model.buckets;
  Profile profile;
  profile.value.assign(static_cast<size_t>(n) * buckets, 0.0);
  if (model.family == Family::kIdentity) {
    for (int i = 0; i < n; ++i) profile.value[static_cast<size_t>(i) * buckets + i] = 1.0;
    return profile;
  }
  if (model.family == Family::kCustom) {
    std::copy(parameter, parameter + static_cast<size_t>(n) * buckets, profile.value.begin());
    return profile;
  }
  profile.slope.assign(profile.value.size(), 0.0);
  for (int i = 0; i < n; ++i)
    for (int s = 0; s < buckets; ++s) {
      const double offset = model.family == Family::kGaussian ? model.radius[s] - model.centre[i] : 0.0;
      const ProfileValue at = profile_value(model.family, parameter[i], model.sigma_min, model.sigma_max, i, s, offset);
      profile.value[static_cast<size_t>(i) * buckets + s] = at.value;
      profile.slope[static_cast<size_t>(i) * buckets + s] = at.slope;
    }
  return profile;
}

Factors factorise(const RingModel& model, const Matrix& profile) {
  const int n = model.rings, buckets = model.buckets;
  const std::vector<int> count = multiplicities(model);
  if (n >= buckets) return {buckets, profile, {}};
  Factors f;
  f.rows = n;
  f.mix.assign(static_cast<size_t>(n) * n, 0.0);
  f.basis.assign(static_cast<size_t>(n) * buckets, 0.0);
  // Gram-Schmidt on the rows of P, each row swept twice: once is not orthogonal to rounding when rings overlap
  for (int i = 0; i < n; ++i) {
    double* row = &f.basis[static_cast<size_t>(i) * buckets];
    double* mix = &f.mix[static_cast<size_t>(i) * f.rows];
    double before = 0;
    for (int s = 0; s < buckets; ++s) {
      row[s] = profile[static_cast<size_t>(i) * buckets + s];
      before += count[s] * row[s] * row[s];
    }
    for (int sweep = 0; sweep < 2; ++sweep)
      for (int j = 0; j < i; ++j) {
        const double* other = &f.basis[static_cast<size_t>(j) * buckets];
        double dot = 0;
        for (int s = 0; s < buckets; ++s) dot += count[s] * row[s] * other[s];
        mix[j] += dot;
        for (int s = 0; s < buckets; ++s) row[s] -= dot * other[s];
      }
    double after = 0;
    for (int s = 0; s < buckets; ++s) after += count[s] * row[s] * row[s];
    // a ring that the earlier ones already span leaves rounding noise, which must not be blown up to a direction
    const bool independent = !(after <= before * 1e-28);
    const double norm = std::sqrt(after);
    mix[i] = independent ? norm : 0.0;
    for (int s = 0; s < buckets; ++s) row[s] = independent ? row[s] / norm : 0.0;
  }
  return f;
}

void pack_rows(const Matrix& matrix, int64_t rows, int64_t columns, int64_t block, float* to) {
  constexpr double kNegligible = 1e-20;  // far rings: in float32 they might be denormal, which is slow
  for (int64_t r = 0; r < packed_size(rows, 1, block); ++r) {
    const double* row = matrix.data() + r * columns;
    double largest = 0;
    for (int64_t c = 0; r < rows && c < columns; ++c) largest = std::max(largest, std::abs(row[c]));
    for (int64_t c = 0; c < columns; ++c)
      to[(r / block * columns + c) * block + r % block] =
          r < rows && std::abs(row[c]) >= kNegligible * largest ? static_cast<float>(row[c]) : 0.0f;
  }
}

GradientBasis gradient_basis(const RingModel& model, const Profile& profile, bool want_parameter) {
  const int n = model.rings, buckets = model.buckets;
  GradientBasis g;
  if (!want_parameter && n < buckets) {
    Factors f = factorise(model, profile.value);
    return {f.rows, std::move(f.basis), std::move(f.mix), {}};
  }
  if (want_parameter && !profile.slope.empty() && 2 * n < buckets) {
    Factors f = factorise(model, profile.value);
    g.rows = 2 * n;
    g.basis = std::move(f.basis);
    g.basis.insert(g.basis.end(), profile.slope.begin(), profile.slope.end());
    g.to_w.assign(static_cast<size_t>(n) * g.rows, 0.0);
    g.to_parameter = g.to_w;
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) g.to_w[static_cast<size_t>(i) * g.rows + j] = f.mix[static_cast<size_t>(i) * n + j];
      g.to_parameter[static_cast<size_t>(i) * g.rows + n + i] = 1.0;
    }
    return g;
  }
  g.rows = buckets;
  g.to_w = profile.value;
  if (want_parameter) g.to_parameter = profile.slope;
  return g;
}

}  // namespace radconv::cpu
