#include "cuda/gradient_plan.h"

#include <algorithm>
#include <cmath>

namespace radconv::cuda {
namespace {

int shells_of_block(const KernelSize& size, int shells) { return size.any() ? kTableShells : shells; }

// Places in shared memory, and how much there is in all.
int64_t lay_out(GradientParams& p, const KernelSize& size, int shells) {
  const int64_t halo = int64_t{p.halo[0]} * p.halo[1] * p.halo[2];
  const int64_t held = size.depth > 1 ? 2 * halo / p.halo[0] : halo;  // in 3D two planes at a time
  const int64_t slots = size.any() ? 2 : grad_slots(shells, size.depth);
  int64_t end = 0;
  const auto place = [&end](int64_t bytes) {
    const int64_t at = end;
    end = round_up(end + bytes, 128);
    return static_cast<int>(std::min(at, kMostInt));
  };
  p.halo_bytes = static_cast<int>(std::min(held * kPixelBytes, kMostInt));
  place(2 * held * kPixelBytes);
  p.ring_at = place(ring_bytes(shells));
  p.grad_at = place(slots * kPartPixels * p.block_outputs * p.item);
  p.gather_at = place(4 * halo);
  p.grad_table_at = place(2 * kGradTableBytes);
  p.pixel_at = place(size.any() ? 4 * kPixels : 0);
  p.bias_at = place(4 * kMultiplyThreads);
  p.task_at = place(kPlaceBytes);
  p.places_at = place(4 * kPlaceBytes);
  return end;
}

std::vector<std::array<int, 3>> possible_tiles(const KernelSize& size) {
  if (!size.any()) return {{1, kPartPixels / kTileWidth * parts_of_tile(size.depth), kTileWidth}};
  return tiles_of(kPixels);
}

// The tile whose pixels need the smallest halo, among those that fit; false where none does.
bool choose_tile(GradientParams& p, const AxisPlans& axes, const KernelSize& size, const Card& card) {
  double least = INFINITY;
  std::array<int, 3> best{};
  const int outputs = p.block_outputs;
  int best_outputs = 0;
  for (const auto& tile : possible_tiles(size)) {
    const std::array<int64_t, 3> halo = halo_of(axes, tile);
    if (std::max({halo[0], halo[1], halo[2]}) > 4096 || halo[0] * halo[1] * halo[2] > 1 << 20) continue;
    const int64_t tiles = set_tile(p, axes, tile);
    // a tile of a kernel of any size takes the same time, whatever it holds
    const double work = static_cast<double>(tiles) * static_cast<double>(2 * kPixels + halo[0] * halo[1] * halo[2]);
    if (work >= least) continue;
    for (p.block_outputs = outputs; p.block_outputs >= 32; p.block_outputs -= 32)
      if (lay_out(p, size, shells_of_block(size, p.shells)) <= card.shared) break;
    if (p.block_outputs < 32) continue;
    least = work;
    best = tile;
    best_outputs = p.block_outputs;
  }
  p.block_outputs = best_outputs > 0 ? best_outputs : outputs;
  if (best_outputs > 0) set_tile(p, axes, best);
  return best_outputs > 0;
}

}  // namespace

FinishPlan make_finish_plan(const ConvShape& shape, const ProfileParams& profile, const WeightParams& weights,
                            const Sums& sums, int64_t& end) {
  FinishPlan plan;
  FinishParams& f = plan.params;
  f.profile = profile;
  f.weights = weights;
  f.sums = sums.sums;
  f.bias_sums = sums.bias_sums;
  f.counter = sums.counter;
  f.copies = sums.copies;
  f.shells = sums.shells;
  f.channel_pitch = sums.channel_pitch;
  f.merged = sums.merged;
  f.outputs = as_int(shape.out_per_group, "the number of output channels");
  f.channels = as_int(shape.in_per_group, "the number of input channels");
  f.groups = as_int(shape.groups, "the number of groups");
  const int64_t values = int64_t{profile.rings} * f.shells;
  const int64_t pairs = shape.groups * shape.out_per_group * shape.in_per_group / f.merged;
  const auto shared = [&] {
    const int64_t sums = int64_t{f.shells} * f.pairs_together;
    return 4 * (values + sums * (sums < kFinishThreads ? finish_ways(static_cast<int>(sums)) : 1));
  };
  f.pairs_together = 64;
  while (f.pairs_together > 1 && shared() > kMostFinishShared) f.pairs_together /= 2;
  while (f.pairs_together > 4 && pairs / f.pairs_together < kMostFinishBlocks) f.pairs_together /= 2;
  plan.shared = as_int(shared(), "the size of the profile");
  if (plan.shared > kMostFinishShared)
    throw Unservable("a profile of " + std::to_string(profile.rings) + " rings by " + std::to_string(f.shells) +
                     " shells is larger than one block holds");
  plan.blocks = static_cast<unsigned>(std::clamp<int64_t>(ceil_div(pairs, f.pairs_together), 1, kMostFinishBlocks));
  f.shares = round_up(end, 256);
  end = f.shares + 8 * values * plan.blocks;
  return plan;
}

GradientPlan make_gradient_plan(const ConvShape& given, const RingModel& model, bool transpose, bool exact,
                                const Strides& x, const Strides& grad, const Card& card) {
  const int chunk = kPixelBytes / item_bytes(given.dtype);
  const int merged = merged_groups(given, chunk);
  const ConvShape shape = merge_groups(given, merged);
  const AxisPlans axes = plan_axes(shape);
  for (const AxisPlan& axis : axes)
    if (axis.differ) throw Unservable("the weight gradient of an upsampled input is that of the adjoint convolution");

  GradientPlan plan;
  plan.format = format_of(shape.dtype, exact);
  GradientParams& p = plan.gradient;
  p.outputs = as_int(shape.out_per_group, "the number of output channels");
  const auto try_size = [&](const Chosen& chosen) {
    plan.size = chosen.size;
    describe(p, shape, axes, x, static_cast<int>(chosen.columns.size()));
    p.block_outputs = static_cast<int>(std::min<int64_t>(round_up(p.outputs, 32), kMostOutputs));
    return choose_tile(p, axes, chosen.size, card);
  };
  Chosen chosen = choose_kernel(shape, model, axes);
  if (!try_size(chosen)) {
    chosen = any_size(model);
    if (!try_size(chosen))
      throw Unservable("the pixels that one output meets take more than the " + std::to_string(card.shared) +
                       " bytes of shared memory that a block of this card has");
  }
  const bool any = plan.size.any();
  const int shells = shells_of_block(plan.size, p.shells);
  plan.shared = static_cast<int>(lay_out(p, plan.size, shells));
  copy_strides(p.grad_strides, grad, shape, Side::kOutput);
  int64_t span = 0;
  for (int axis = 0; axis < 3; ++axis)
    span += int64_t{p.tile[axis]} * p.classes[axis] * std::abs(p.grad_strides[2 + axis]) * p.item;
  as_int(span, "the number of bytes that one block's outputs span");
  check_offsets(p);

  const int chunks = any ? 1 : chunks_together(shells);
  const int64_t tiles = shape.batch * tiles_of_image(p);
  p.all_tiles = as_int(tiles, "the number of tiles");
  p.plane = p.halo[1] * p.halo[2] * (any ? p.halo[0] : 1);
  p.out_blocks = static_cast<int>(ceil_div(p.outputs, p.block_outputs));
  p.chunk_blocks = static_cast<int>(ceil_div(p.channels, int64_t{chunks} * chunk));
  p.passes = static_cast<int>(ceil_div(p.shells, shells));
  const int ways = kMultiplyThreads / 32 / (p.item == 4 ? 1 : 2),
            of_warp = outputs_of_warp(plan.format == Format::kFloat32);
  int pixel_splits = ways;
  while (pixel_splits > 1 && ways / pixel_splits * of_warp < p.block_outputs) pixel_splits /= 2;
  for (p.pixel_split_bits = 0; 1 << p.pixel_split_bits < pixel_splits;) ++p.pixel_split_bits;
  p.channel_pitch = as_int(round_up(p.channels, chunk), "the number of input channels");

  const int64_t units = int64_t{p.groups} * p.out_blocks * p.chunk_blocks * p.passes;
  const int64_t copy_bytes =
      pixel_splits * 4 * int64_t{p.groups} * p.outputs * (int64_t{p.shells} * p.channel_pitch + 1);
  const int64_t most_splits = std::max<int64_t>(1, std::min<int64_t>(tiles, kMostWorkspace / copy_bytes));
  const Stage stage{plan.format,
                    int64_t{p.tile[0]} * p.tile[1] * p.tile[2],
                    int64_t{p.halo[0]} * p.halo[1] * p.halo[2],
                    taps_of(model),
                    plan.size.k,
                    p.shells,
                    shells,
                    p.block_outputs,
                    chunks,
                    chunk};
  p.splits = static_cast<int>(best_splits(units, tiles, gradient_clocks(stage), pixel_splits,
                                          static_cast<double>(copy_bytes), most_splits, card));
  plan.blocks = static_cast<unsigned>(as_int(units * p.splits, "the number of blocks"));

  Tables tables;
  const ProfileParams profile = describe_profile(model, chosen.columns, tables);
  tabulate(p, tables, shape, model, axes, any);
  plan.tables = tables.take();

  const int copies = p.splits * pixel_splits;
  p.counter = 0;
  p.sums = 256;
  p.bias_sums = p.sums + round_up(int64_t{copies} * p.groups * p.shells * p.outputs * p.channel_pitch * 4, 256);
  plan.workspace = p.bias_sums + int64_t{copies} * p.groups * p.outputs * 4;
  plan.finish =
      make_finish_plan(shape, profile, describe_weights(given, model.rings, transpose),
                       {p.sums, p.bias_sums, p.counter, copies, p.shells, p.channel_pitch, merged}, plan.workspace);
  return plan;
}

}  // namespace radconv::cuda
