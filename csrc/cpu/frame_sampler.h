// The frame sampler on the CPU: the logits of one step in, the drawn row, the next input embedding and the latent of the
// frame that became complete out. Plain pointers and status codes; nothing is allocated after construction.
#pragma once

#include <cstdint>
#include <memory>

#include "core/candidates.h"
#include "core/segment.h"
#include "core/tables.h"

namespace ualm {

enum class StepStatus : int32_t { kOk = 0, kNotBegun = 1, kEnded = 2, kBadLogits = 3 };

struct StepResult {
  StepStatus status;
  int32_t flags;   // StepFlags, when status is kOk
  Fault fault;     // with kBadLogits: what is wrong, and where
  int32_t row;
  int32_t stream;
};

class FrameSampler {
 public:
  // The tables must outlive the sampler; their embedding is float32 or bfloat16.
  FrameSampler(const Layout& layout, const Tables& tables);

  // The caller has checked the values: core/sampling.h and kMinFixedSteps.
  void begin(SegmentKind kind, int32_t max_steps, const Sampling& sampling);

  // conditional and null_branch: audio_columns() or text_columns() float32; null_branch is null without guidance.
  // row_out[8], embedding_out[hidden] and latent_out[latent] are written on success; latent_out only with kLatent.
  // On a fault nothing is written and the segment stays where it was.
  StepResult step(const float* conditional, const float* null_branch, int32_t* row_out, float* embedding_out,
                  float* latent_out);

  const Layout& layout() const { return layout_; }
  const Tables& tables() const { return tables_; }
  const Segment& segment() const { return segment_; }
  bool begun() const { return begun_; }

 private:
  StepResult draw_row(const StepLogits& logits, int32_t* ids);

  Layout layout_;
  Tables tables_;
  Segment segment_{};
  Sampling sampling_{};
  bool begun_ = false;
  int32_t recent_[kStreams][kStreams] = {};  // the last 8 rows; row r lies at r % 8
  std::unique_ptr<Candidate[]> scratch_;
};

// Embeddings of `count` rows of 8 ids, out[count, hidden]. Returns -1, or the index of the first id (in rows, flat) that
// is outside the table; then nothing is written.
int64_t embed_rows(const Tables& tables, const int32_t* rows, int64_t count, float* out);

// Latents of `count` frames of 8 codes, out[count, latent]. Returns -1, or the flat index of the first code outside
// 0 .. codebook_size-1; then nothing is written.
int64_t latents_of_codes(const float* rvq_table, const float* rvq_bias, int64_t codebook_size, int64_t latent,
                         const int32_t* codes, int64_t count, float* out);

}  // namespace ualm
