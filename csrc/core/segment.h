// What a segment (one text or one sound) does with each row: which streams draw from what, when the sound drains, when
// the segment stops. No logits and no tables here: plan_row() says what to do, finish_row() takes what was drawn.
//
// A sound of T frames takes T + 7 rows because stream n lags n rows behind (row[n + t][n] = code[t][n]). In fixed mode:
//   before row n   stream n holds its pad
//   row 0          stream 0 draws codes only: no sound is empty
//   row T >= 1     stream 0 draws its pad, eos or eot: that ends the sound; the cell itself becomes the pad
//   T .. T+6       drain: stream n draws until row T+n-1, then holds its pad
//   row T+7        stop row: stream 0 is the eos or eot remembered from row T, else the better of the two by logit
// The drain must fit into max_steps: it is forced at row max_steps-7, and then row max_steps-1 is the last one.
#pragma once

#include "core/layout.h"

namespace ualm {

constexpr int32_t kDelay = kStreams - 1;       // rows by which the last stream lags
constexpr int32_t kMinFixedSteps = kDelay + 1;  // one frame and its drain

enum class SegmentKind : int32_t { kText, kAudioFixed, kAudioReference };

enum StepFlags : int32_t { kStop = 1, kLimit = 2, kLatent = 4 };

struct Segment {
  SegmentKind kind;
  int32_t max_steps;
  int32_t row;         // the row that the next step draws
  int32_t frames;      // T once the drain has begun, else -1
  int32_t remembered;  // eos or eot drawn at row T, else 0
  int32_t ended;       // after STOP or LIMIT
};

// What stream n does in the row that is drawn: take `id`, draw from `range`, or (rank_ends) take the better of eos and eot.
struct Cell {
  enum Action : int32_t { kHold, kDraw, kRankEnds } action;
  int32_t id;
  ColumnRange range;
};

UALM_HD inline Segment begin_segment(SegmentKind kind, int32_t max_steps) {
  return {kind, max_steps, 0, -1, 0, 0};
}

UALM_HD inline bool is_end(int32_t id) { return id == kEos || id == kEot; }

UALM_HD inline bool is_stop_row(const Segment& segment) {
  return segment.kind == SegmentKind::kAudioFixed && segment.frames >= 0 && segment.row == segment.frames + kDelay;
}

UALM_HD inline Cell plan_cell(const Segment& segment, const Layout& layout, int stream) {
  const Cell pad = {Cell::kHold, pad_id(layout, stream), {0, 0}};
  if (segment.kind == SegmentKind::kText) {
    if (stream == 0) return {Cell::kDraw, 0, {0, text_columns(layout)}};
    return {Cell::kHold, 0, {0, 0}};
  }
  if (segment.kind == SegmentKind::kAudioReference) return {Cell::kDraw, 0, whole_stream(layout, stream)};

  const int32_t row = segment.row;
  if (stream == 0) {
    if (is_stop_row(segment)) {
      if (segment.remembered != 0) return {Cell::kHold, segment.remembered, {0, 0}};
      return {Cell::kRankEnds, 0, {0, kEndColumns}};
    }
    if (row == 0) return {Cell::kDraw, 0, codes_only(layout, 0)};
    if (segment.frames >= 0 || row == segment.max_steps - kDelay) return pad;
    return {Cell::kDraw, 0, whole_stream(layout, 0)};
  }
  if (row < stream) return pad;
  if (segment.frames >= 0 && row >= segment.frames + stream) return pad;
  return {Cell::kDraw, 0, whole_stream(layout, stream)};
}

struct RowEnd {
  int32_t flags;
  int32_t embedded_streams;  // how many leading streams count in the row's embedding
};

// Takes the row that was drawn: ids[0] may be rewritten (the cell that ends a sound becomes the pad). Advances `segment`.
UALM_HD inline RowEnd finish_row(Segment& segment, const Layout& layout, int32_t* ids) {
  bool stop = false;
  if (segment.kind == SegmentKind::kAudioFixed) {
    stop = is_stop_row(segment);
    const bool ends_sound = is_end(ids[0]) || ids[0] == pad_id(layout, 0);
    if (segment.frames < 0 && ends_sound) {
      segment.frames = segment.row;
      segment.remembered = is_end(ids[0]) ? ids[0] : 0;
      ids[0] = pad_id(layout, 0);
    }
  } else {
    stop = is_end(ids[0]);
  }
  const bool audio = segment.kind != SegmentKind::kText;
  const bool limit = !stop && segment.row == segment.max_steps - 1;
  const bool latent = audio && !stop && segment.row >= kDelay;
  // The reference writes only stream 0 of the last row to the KV cache, also where its step limit ended the loop.
  const bool stream0_only = stop || (limit && segment.kind == SegmentKind::kAudioReference);
  segment.row += 1;
  segment.ended = stop || limit;
  return {(stop ? kStop : 0) | (limit ? kLimit : 0) | (latent ? kLatent : 0), stream0_only ? 1 : kStreams};
}

}  // namespace ualm
