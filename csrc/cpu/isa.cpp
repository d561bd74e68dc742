#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(RADCONV_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace radconv::cpu {
namespace {

struct Isa {
  const Kernels* kernels;
  bool runs;
};

#if defined(RADCONV_AMX)
// Linux hands the tile registers' state to a process that asks for it, for all its threads.
bool may_use_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return (d & kBf16) != 0 && (d & kTile) != 0 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

std::vector<Isa> isas() {
  std::vector<Isa> list{{&kernels_baseline, true}};
#if defined(RADCONV_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  list.push_back({&kernels_avx2, avx2});
  list.push_back({&kernels_avx512, avx512});
#if defined(RADCONV_BF16)
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  list.push_back({&kernels_avx512_bf16, bf16});
#if defined(RADCONV_AMX)
  list.push_back({&kernels_amx, bf16 && may_use_amx()});
#endif
#endif
#endif
  return list;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels* chosen = [] {
    const char* wanted = std::getenv("RADCONV_CPU_ISA");
    const Kernels* best = nullptr;
    for (const Isa& isa : isas()) {
      if (!isa.runs) continue;
      if (wanted != nullptr && std::strcmp(wanted, isa.kernels->name) == 0) return isa.kernels;
      best = isa.kernels;
    }
    if (wanted != nullptr && *wanted != '\0')
      throw std::invalid_argument(std::string("RADCONV_CPU_ISA: expected an instruction set that was built and that ") +
                                  "this machine runs, got '" + wanted + "'");
    return best;
  }();
  return *chosen;
}

std::vector<const char*> available_isas() {
  std::vector<const char*> names;
  for (const Isa& isa : isas())
    if (isa.runs) names.push_back(isa.kernels->name);
  return names;
}

const char* current_isa() { return kernels().name; }

}  // namespace radconv::cpu
