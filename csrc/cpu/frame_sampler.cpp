#include "cpu/frame_sampler.h"

namespace ualm {

namespace {

// The first index whose value is outside [0, limit), or -1.
int64_t first_outside(const int32_t* values, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] < 0 || values[i] >= limit) return i;
  }
  return -1;
}

void sum_ids(const Tables& tables, const int32_t* ids, int streams, float* out) {
  if (tables.embedding_number == Number::kBFloat16) {
    sum_embeddings(static_cast<const BFloat16*>(tables.embedding), tables.hidden, ids, streams, out, 0, 1);
  } else {
    sum_embeddings(static_cast<const float*>(tables.embedding), tables.hidden, ids, streams, out, 0, 1);
  }
}

}  // namespace

FrameSampler::FrameSampler(const Layout& layout, const Tables& tables) : layout_(layout), tables_(tables) {
  const int32_t audio = whole_stream(layout, 0).end;  // stream 0 has the widest range of the eight
  const int32_t text = text_columns(layout);
  scratch_ = std::make_unique<Candidate[]>(static_cast<size_t>(audio > text ? audio : text));
}

void FrameSampler::begin(SegmentKind kind, int32_t max_steps, const Sampling& sampling) {
  segment_ = begin_segment(kind, max_steps);
  sampling_ = sampling;
  begun_ = true;
}

StepResult FrameSampler::draw_row(const StepLogits& logits, int32_t* ids) {
  const int32_t base = segment_.kind == SegmentKind::kText ? layout_.text_base : layout_.audio_base;
  Sampling greedy = sampling_;
  greedy.temperature = 0.0f;
  for (int stream = 0; stream < kStreams; ++stream) {
    const Cell cell = plan_cell(segment_, layout_, stream);
    if (cell.action == Cell::kHold) {
      ids[stream] = cell.id;
      continue;
    }
    const Draw draw = draw_column(logits, cell.range, base, cell.action == Cell::kRankEnds ? greedy : sampling_,
                                  static_cast<uint32_t>(segment_.row), static_cast<uint32_t>(stream), scratch_.get());
    if (draw.fault != Fault::kNone) return {StepStatus::kBadLogits, 0, draw.fault, segment_.row, stream};
    ids[stream] = id_of_column(draw.column, base);
  }
  return {StepStatus::kOk, 0, Fault::kNone, segment_.row, 0};
}

StepResult FrameSampler::step(const float* conditional, const float* null_branch, int32_t* row_out,
                              float* embedding_out, float* latent_out) {
  if (!begun_) return {StepStatus::kNotBegun, 0, Fault::kNone, 0, 0};
  if (segment_.ended) return {StepStatus::kEnded, 0, Fault::kNone, segment_.row, 0};

  int32_t ids[kStreams];
  StepResult result = draw_row({conditional, null_branch, sampling_.guidance, sampling_.one_minus_guidance}, ids);
  if (result.status != StepStatus::kOk) return result;

  const int32_t row = segment_.row;
  const RowEnd end = finish_row(segment_, layout_, ids);
  result.flags = end.flags;
  for (int stream = 0; stream < kStreams; ++stream) {
    recent_[row % kStreams][stream] = ids[stream];
    row_out[stream] = ids[stream];
  }
  sum_ids(tables_, ids, end.embedded_streams, embedding_out);
  if (end.flags & kLatent) {
    const int32_t frame = row - kDelay;
    int32_t codes[kStreams];
    for (int stream = 0; stream < kStreams; ++stream) {
      codes[stream] = code_of_id(layout_, stream, recent_[(frame + stream) % kStreams][stream]);
    }
    sum_codes(tables_.rvq, tables_.rvq_bias, layout_.codebook_size, tables_.latent, codes, latent_out, 0, 1);
  }
  return result;
}

int64_t embed_rows(const Tables& tables, const int32_t* rows, int64_t count, float* out) {
  const int64_t bad = first_outside(rows, count * kStreams, tables.vocabulary);
  if (bad >= 0) return bad;
  for (int64_t i = 0; i < count; ++i) {
    sum_ids(tables, rows + i * kStreams, kStreams, out + i * tables.hidden);
  }
  return -1;
}

int64_t latents_of_codes(const float* rvq_table, const float* rvq_bias, int64_t codebook_size, int64_t latent,
                         const int32_t* codes, int64_t count, float* out) {
  const int64_t bad = first_outside(codes, count * kStreams, codebook_size);
  if (bad >= 0) return bad;
  for (int64_t i = 0; i < count; ++i) {
    sum_codes(rvq_table, rvq_bias, codebook_size, latent, codes + i * kStreams, out + i * latent, 0, 1);
  }
  return -1;
}

}  // namespace ualm
