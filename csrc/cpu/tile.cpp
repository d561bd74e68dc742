// The CPU kernels of one instruction set.
//
//   halo (halo.h) -> pair sums -> bucket sums -> basis rows (rings.h) -> panel -> product (product.h)
//                                                                        conv_tile.h, weight_tile.h
//
// Compiled once per instruction set with RADCONV_ISA = baseline, avx2, avx512, avx512_bf16 or amx; see tile.h for what
// must not be used.

#include "tile.h"

#include "conv_tile.h"
#include "fold.h"
#include "weight_tile.h"

#define RADCONV_CONCAT_(a, b) a##b
#define RADCONV_CONCAT(a, b) RADCONV_CONCAT_(a, b)
#define RADCONV_STRING_(a) #a
#define RADCONV_STRING(a) RADCONV_STRING_(a)

namespace radconv::cpu {
namespace {

#if defined(__AMX_BF16__)
constexpr Product kFloat32 = Product::kTile, kBFloat16 = Product::kTile;
#elif defined(__AVX512BF16__)
constexpr Product kFloat32 = Product::kFma, kBFloat16 = Product::kPair;
#else
constexpr Product kFloat32 = Product::kFma, kBFloat16 = Product::kFma;
#endif

void fold_task(const FoldCall& call, int64_t task) { fold_block<kBFloat16 != Product::kFma>(call, task); }

void conv_task(const ConvCall& call, int64_t task) {
  if (call.shape.dtype != DType::kFloat32)
    ConvTile<uint16_t, kBFloat16, 1>(call, task).run();
  else if (call.product == kFloat32)
    ConvTile<float, kFloat32, 3>(call, task).run();
  else
    ConvTile<float, Product::kFma, 3>(call, task).run();
}

// Gradients in bfloat16 are sums of many terms: only the tensors are rounded, not the basis rows.
void weight_task(const WeightCall& call, int64_t task) {
  const bool full = call.shape.dtype == DType::kFloat32;
  if (call.product == kFloat32)
    full ? WeightChunk<float, kFloat32, 3, 3>(call, task).run()
         : WeightChunk<uint16_t, kFloat32, 2, 1>(call, task).run();
  else
    full ? WeightChunk<float, Product::kFma, 3, 3>(call, task).run()
         : WeightChunk<uint16_t, Product::kFma, 2, 1>(call, task).run();
}

}  // namespace

extern const Kernels RADCONV_CONCAT(kernels_, RADCONV_ISA);
const Kernels RADCONV_CONCAT(kernels_, RADCONV_ISA) = {RADCONV_STRING(RADCONV_ISA),
                                                       kLanes,
                                                       kRows,
                                                       kStrip,
                                                       kFloat32,
                                                       kBFloat16,
                                                       fold_task,
                                                       conv_task,
                                                       weight_task,
                                                       finish_task};

}  // namespace radconv::cpu
