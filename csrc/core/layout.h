// Maps vocabulary ids to logit columns, and back.
// Audio head: [eos, eot, stream 0: pad, code 0 .. K-1, stream 1: pad, codes, .. stream 7]; text head: [eos, eot, ids].
// In both, ids rise with the column, so "ties to the lower id" and "ties to the lower column" are the same rule.
#pragma once

#include "core/host_device.h"

namespace ualm {

constexpr int kStreams = 8;
constexpr int32_t kEos = 2;
constexpr int32_t kEot = 3;
constexpr int32_t kEndColumns = 2;  // the columns of eos and eot, before the modality's own

// Columns [begin, end) of a step's logits: what one stream may draw.
struct ColumnRange {
  int32_t begin;
  int32_t end;
};

struct Layout {
  int32_t codebook_size;  // K
  int32_t text_size;      // V
  int32_t audio_base;     // id of stream 0's pad
  int32_t text_base;      // id of text token 0
};

UALM_HD inline int32_t audio_columns(const Layout& layout) {
  return kEndColumns + kStreams * (layout.codebook_size + 1);
}

UALM_HD inline int32_t text_columns(const Layout& layout) { return kEndColumns + layout.text_size; }

UALM_HD inline int32_t pad_id(const Layout& layout, int stream) {
  return layout.audio_base + stream * (layout.codebook_size + 1);
}

// `base` is audio_base or text_base.
UALM_HD inline int32_t id_of_column(int32_t column, int32_t base) {
  return column < kEndColumns ? kEos + column : base + (column - kEndColumns);
}

// Code of an id drawn in an audio stream; its pad, eos and eot count as code 0.
UALM_HD inline int32_t code_of_id(const Layout& layout, int stream, int32_t id) {
  const int32_t code = id - pad_id(layout, stream) - 1;
  return code < 0 ? 0 : code;
}

// Everything that `stream` can ever draw: its pad and codes, for stream 0 also eos and eot.
UALM_HD inline ColumnRange whole_stream(const Layout& layout, int stream) {
  const int32_t width = layout.codebook_size + 1;
  const int32_t begin = kEndColumns + stream * width;
  return {stream == 0 ? 0 : begin, begin + width};
}

UALM_HD inline ColumnRange codes_only(const Layout& layout, int stream) {
  const ColumnRange whole = whole_stream(layout, stream);
  return {whole.end - layout.codebook_size, whole.end};
}

}  // namespace ualm
