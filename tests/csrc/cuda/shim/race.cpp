// Runs blocks of each kernel with real threads, for ThreadSanitizer: accesses by two threads must be ordered by a
// barrier. Prints the rows drawn, so that the test knows that they were computed.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/launch.h"

using namespace ualm;
using namespace ualm::cuda;

namespace {

float noise(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) * 0x1p-24f * 8.0f - 4.0f;
}

std::vector<float> numbers(size_t count, uint32_t seed) {
  std::vector<float> made(count);
  for (float& each : made) each = noise(seed);
  return made;
}

void must(const Launched& launched) {
  if (launched.ok()) return;
  std::fprintf(stderr, "refused: %s\n", launched.refused != nullptr ? launched.refused : "?");
  std::exit(3);
}

// One segment of `rows` rows by one way of drawing.
void sample(int32_t top_k, double top_p, int32_t rows) {
  constexpr int32_t kHidden = 40, kLatent = 12, kCapacity = 4;
  const Layout layout = {151, 9, 256, 4};
  const int32_t columns = audio_columns(layout);
  const std::vector<float> embedding = numbers((256 + 8 * 152) * kHidden, 1), rvq = numbers(8 * 151 * kLatent, 2);
  const std::vector<float> bias = numbers(kLatent, 3);
  std::vector<float> logits = numbers(2 * static_cast<size_t>(columns), 4);
  logits[0] = logits[1] = -60.0f;
  std::vector<SequenceState> states(1);
  std::vector<float> embeddings(kHidden), latents(kCapacity * kLatent);
  std::vector<int32_t> drawn(kCapacity * kStreams);
  Progress progress = 0;
  SampleArgs args{};
  args.states = states.data();
  args.logits = logits.data();
  args.logits_stride = columns;
  args.sequences = 1;
  args.branches = 2;
  args.layout = layout;
  args.tables = {embedding.data(), Number::kFloat32, rvq.data(), bias.data(), 256 + 8 * 152, kHidden, kLatent};
  args.embeddings = embeddings.data();
  args.embedding_copies = 1;
  args.rows = drawn.data();
  args.row_capacity = kCapacity;
  args.latents = latents.data();
  args.latent_capacity = kCapacity;
  args.progress = &progress;
  Sampling sampling{};
  sampling.temperature = 0.8f;
  sampling.top_k = top_k;
  sampling.top_p = top_p;
  sampling.guidance = 3.0f;
  sampling.one_minus_guidance = -2.0f;
  must(launch_begin(states.data(), begin_segment(SegmentKind::kAudioReference, rows), sampling, &progress, nullptr));
  for (int32_t row = 0; row < rows; ++row) must(launch_sample(args, nullptr));
  std::printf("%llu:", static_cast<unsigned long long>(progress & 0xFFFFFFFF));
  for (int stream = 0; stream < kStreams; ++stream) {
    std::printf(" %d", drawn[static_cast<size_t>((rows - 1) % kCapacity * kStreams + stream)]);
  }
  std::printf("\n");
}

void head() {
  constexpr int32_t kInputs = 544, kColumns = 70;
  const std::vector<float> hidden = numbers(2 * kInputs, 5), weights = numbers(kInputs * kColumns, 6);
  std::vector<float> logits(2 * kColumns);
  HeadArgs args{};
  args.hidden = hidden.data();
  args.sequences = 1;
  args.branches = 2;
  args.inputs = kInputs;
  args.columns = kColumns;
  args.weights = weights.data();
  args.weight_stride = kColumns;
  args.logits = logits.data();
  args.logits_stride = kColumns;
  must(launch_head(args, nullptr));
}

}  // namespace

// With an argument: only the first part.
int main(int count, char**) {
  sample(20, 1.0, 1);  // collected and sorted
  if (count > 1) return 0;
  sample(20, 0.7, 1);   // and cut by top-p
  sample(140, 0.7, 1);  // searched cuts
  head();
}
