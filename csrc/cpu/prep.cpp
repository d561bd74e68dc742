#include "prep.h"

#include <algorithm>
#include <cmath>

#include "../profile.h"
#include "thread_pool.h"

namespace radconv::cpu {
namespace {

std::vector<int> multiplicities(const RingModel& model) {
  std::vector<int> count(model.buckets, 0);
  for (int b : model.bucket)
    if (b >= 0) ++count[b];
  return count;
}

}  // namespace

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
  Factors f;
  f.rows = std::min(n, buckets);
  f.mix.assign(static_cast<size_t>(n) * f.rows, 0.0);
  f.basis.assign(static_cast<size_t>(f.rows) * buckets, 0.0);
  if (n >= buckets) {
    for (int s = 0; s < buckets; ++s) {
      const double root = std::sqrt(std::max(count[s], 1));
      f.basis[static_cast<size_t>(s) * buckets + s] = 1 / root;
      for (int i = 0; i < n; ++i)
        f.mix[static_cast<size_t>(i) * f.rows + s] = profile[static_cast<size_t>(i) * buckets + s] * root;
    }
    return f;
  }
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
  for (int64_t r = 0; r < packed_size(rows, 1, block); ++r)
    for (int64_t c = 0; c < columns; ++c)
      to[(r / block * columns + c) * block + r % block] =
          r < rows ? static_cast<float>(matrix[static_cast<size_t>(r * columns + c)]) : 0.0f;
}

void fold_weights(const WeightView& view, const Matrix& matrix, int64_t m, int64_t block, float* to, int threads) {
  const int64_t blocks = (view.out_per_group + block - 1) / block;
  const int64_t depth = view.in_per_group * m;
  const int64_t work = view.groups * view.out_per_group * depth * view.rings;
  parallel_for(view.groups * blocks, work < 100000 ? 1 : threads, [&](int64_t task) {
    const int64_t group = task / blocks, first = task % blocks * block;
    float* packed = to + task * depth * block;
    for (int64_t lane = 0; lane < block; ++lane) {
      if (first + lane >= view.out_per_group) {
        for (int64_t d = 0; d < depth; ++d) packed[d * block + lane] = 0.0f;
        continue;
      }
      for (int64_t c = 0; c < view.in_per_group; ++c) {
        const float* w = view.w + view.offset(group, first + lane, c);
        for (int64_t j = 0; j < m; ++j) {
          double sum = 0;
          for (int i = 0; i < view.rings; ++i) sum += w[i] * matrix[static_cast<size_t>(i * m + j)];
          packed[(c * m + j) * block + lane] = static_cast<float>(sum);
        }
      }
    }
  });
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
  g.basis.assign(static_cast<size_t>(buckets) * buckets, 0.0);
  for (int s = 0; s < buckets; ++s) g.basis[static_cast<size_t>(s) * buckets + s] = 1.0;
  g.to_w = profile.value;
  if (want_parameter) g.to_parameter = profile.slope;
  return g;
}

void finish_gradients(const WeightView& view, const RingModel& model, const GradientBasis& basis, const float* sums,
                      int64_t pitch, float* grad_w, float* grad_parameter, int threads) {
  const int64_t m = basis.rows, n = view.rings;
  const int64_t channels = view.groups * view.in_per_group;
  const int64_t work = channels * view.out_per_group * m * n;
  Matrix partial(grad_parameter ? static_cast<size_t>(channels * n * m) : 0, 0.0);
  parallel_for(channels, work < 100000 ? 1 : threads, [&](int64_t channel) {
    const int64_t group = channel / view.in_per_group, in = channel % view.in_per_group;
    const float* from = sums + channel * m * pitch;
    for (int64_t o = 0; o < view.out_per_group; ++o) {
      const int64_t at = view.offset(group, o, in);
      for (int64_t i = 0; i < n; ++i) {
        double sum = 0;
        for (int64_t j = 0; j < m; ++j) sum += basis.to_w[static_cast<size_t>(i * m + j)] * from[j * pitch + o];
        if (grad_w) grad_w[at + i] = static_cast<float>(sum);
        if (grad_parameter)
          for (int64_t j = 0; j < m; ++j)
            partial[static_cast<size_t>((channel * n + i) * m + j)] +=
                static_cast<double>(view.w[at + i]) * from[j * pitch + o];
      }
    }
  });
  if (!grad_parameter) return;
  Matrix total(static_cast<size_t>(n * m), 0.0);
  for (int64_t channel = 0; channel < channels; ++channel)
    for (int64_t i = 0; i < n * m; ++i)
      total[static_cast<size_t>(i)] += partial[static_cast<size_t>(channel * n * m + i)];
  if (model.family == Family::kCustom) {
    std::copy(total.begin(), total.end(), grad_parameter);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < m; ++j)
      sum += basis.to_parameter[static_cast<size_t>(i * m + j)] * total[static_cast<size_t>(i * m + j)];
    grad_parameter[i] = static_cast<float>(sum);
  }
}

}  // namespace radconv::cpu
