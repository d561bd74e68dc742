// Rate of the vector units: independent chains of multiply-adds that stay in registers.
// Compiled and called by machine.py; one call keeps one core busy.

constexpr int kChains = 12, kLanes = 16;  // of 64 bytes; an addition of two products has 4 to 5 clocks of latency

// Does rounds * 16 * kChains * kLanes multiply-adds and returns their sum, or the compiler would drop them.
extern "C" float multiply_add(long rounds) {
  float chain[kChains][kLanes];
  for (int i = 0; i < kChains; ++i)
    for (int l = 0; l < kLanes; ++l) chain[i][l] = 1.0f + static_cast<float>(i + l);
  for (long round = 0; round < rounds * 16; ++round)
    for (int i = 0; i < kChains; ++i)
      for (int l = 0; l < kLanes; ++l) chain[i][l] = chain[i][l] * 0.999f + 0.001f;
  float sum = 0.0f;
  for (int i = 0; i < kChains; ++i)
    for (int l = 0; l < kLanes; ++l) sum += chain[i][l];
  return sum;
}

extern "C" long multiply_adds_a_round() { return 16L * kChains * kLanes; }
