// The taps of a disk or ball, sorted by distance at compile time: K wide and high, KD deep (1 or K).
//
// Only offsets dz, dy, dx >= 0 appear: the kernel is its own mirror image along each axis.

#pragma once

#include <utility>

namespace radconv::cuda {

// f(integral_constant<int, I>) for I = 0 .. N - 1, unrolled.
template <class F, int... I>
__device__ __forceinline__ void for_each_of(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}

template <int N, class F>
__device__ __forceinline__ void static_for(F&& f) {
  for_each_of(f, std::make_integer_sequence<int, N>{});
}

template <int K, int KD>
struct Ball {
  static_assert(K % 2 == 1 && (KD == 1 || KD == K));
  static constexpr int kReach = K / 2, kDepthReach = KD / 2;

  static constexpr bool inside(int dz, int dy, int dx) {
    return dz <= kDepthReach && dy <= kReach && dx <= kReach && 4 * (dz * dz + dy * dy + dx * dx) < K * K;
  }

  // Whether some tap has this squared distance.
  static constexpr bool is_shell(int square) {
    for (int dz = 0; dz <= kDepthReach; ++dz)
      for (int dy = 0; dy <= kReach; ++dy)
        for (int dx = 0; dx <= kReach; ++dx)
          if (inside(dz, dy, dx) && dz * dz + dy * dy + dx * dx == square) return true;
    return false;
  }

  // Shells nearer than this squared distance, which is also the index of the shell there.
  static constexpr int shell(int square) {
    int count = 0;
    for (int q = 0; q < square; ++q) count += is_shell(q);
    return count;
  }

  static constexpr int kShells = shell(K * K);
};

// The taps of the planes dz and -dz.
template <int K, int KD, int DZ>
struct Plane {
  using Taps = Ball<K, KD>;

  struct Tap {
    int dy, dx;
  };

  // Farthest row that has a tap in column dx; -1 if there is none.
  static constexpr int height(int dx) {
    int dy = -1;
    while (Taps::inside(DZ, dy + 1, dx)) ++dy;
    return dy;
  }

  // Taps with a squared distance of `square` within the plane: how many, and which.
  static constexpr int count(int square) {
    int found = 0;
    for (int dy = 0; dy <= Taps::kReach; ++dy)
      for (int dx = 0; dx <= Taps::kReach; ++dx) found += Taps::inside(DZ, dy, dx) && dy * dy + dx * dx == square;
    return found;
  }
  static constexpr Tap tap(int square, int index) {
    for (int dy = 0; dy <= Taps::kReach; ++dy)
      for (int dx = 0; dx <= Taps::kReach; ++dx)
        if (Taps::inside(DZ, dy, dx) && dy * dy + dx * dx == square && index-- == 0) return {dy, dx};
    return {-1, -1};
  }

  // Squared distances within the plane, ascending.
  static constexpr int radii() {
    int found = 0;
    for (int q = 0; q < K * K; ++q) found += count(q) > 0;
    return found;
  }
  static constexpr int radius(int index) {
    for (int q = 0; q < K * K; ++q)
      if (count(q) > 0 && index-- == 0) return q;
    return -1;
  }
};

}  // namespace radconv::cuda
