// SPDX-License-Identifier: BSD-3-Clause
// The C interface, lstm_fused/include/lstm_fused.h: checks, and exceptions turned into statuses.
#include "lstm_fused.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "common/error.h"
#include "cpu/stream/file.h"
#include "cpu/stream/stream.h"

struct lstm_fused_stream {
  lstm_fused::cpu::Stream stream;
};

namespace {

using lstm_fused::cpu::Parallel;
using lstm_fused::cpu::Stream;
using lstm_fused::cpu::StreamModel;

// NOTE: a fixed array, so that no failure allocates and none ends in an exception.
thread_local char last_error[512];

lstm_fused_status fail(lstm_fused_status status, const char* text) {
  std::snprintf(last_error, sizeof(last_error), "%s", text);
  return status;
}

lstm_fused_status refuse_null(const char* function, const char* argument) {
  std::snprintf(last_error, sizeof(last_error), "%s: %s must not be null", function, argument);
  return LSTM_FUSED_INVALID_ARGUMENT;
}

// Calls make() and turns what it throws into a status; an Error into `refusal`.
template <typename Make>
lstm_fused_status guarded(lstm_fused_status refusal, const Make& make) {
  try {
    make();
    return LSTM_FUSED_OK;
  } catch (const std::bad_alloc&) {
    return fail(LSTM_FUSED_OUT_OF_MEMORY, "out of memory");
  } catch (const lstm_fused::Error& error) {
    // NOTE: the core's own allocations fail in the words of torch's allocator.
    const bool is_memory = std::strncmp(error.what(), "DefaultCPUAllocator", 19) == 0;
    return fail(is_memory ? LSTM_FUSED_OUT_OF_MEMORY : refusal, error.what());
  }
}

Parallel one_thread() { return Parallel{}; }

// The bytes of a file; false, and last_error, where it cannot be read.
bool read_file(const char* path, std::vector<char>& bytes) {
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path, "rb"));
  if (file) {
    char block[1 << 16];
    size_t count;
    while ((count = std::fread(block, 1, sizeof(block), file.get())) > 0) {
      bytes.insert(bytes.end(), block, block + count);
    }
    if (!std::ferror(file.get())) return true;
  }
  std::snprintf(last_error, sizeof(last_error), "cannot read %s", path);
  return false;
}

lstm_fused_status open_bytes(const void* data, size_t size, int64_t batch,
                             lstm_fused_stream** stream) {
  *stream = nullptr;
  if (batch < 1) return fail(LSTM_FUSED_INVALID_ARGUMENT, "batch must be at least 1");
  std::shared_ptr<const StreamModel> model;
  const lstm_fused_status status = guarded(LSTM_FUSED_INVALID_FILE, [&] {
    model = lstm_fused::cpu::read_stream_file(data, size, one_thread());
  });
  if (status != LSTM_FUSED_OK) return status;
  return guarded(LSTM_FUSED_INVALID_ARGUMENT,
                 [&] { *stream = new lstm_fused_stream{Stream(std::move(model), batch)}; });
}

}  // namespace

const char* lstm_fused_version(void) { return LSTM_FUSED_VERSION; }

const char* lstm_fused_last_error(void) { return last_error; }

lstm_fused_status lstm_fused_open(const char* path, int64_t batch, lstm_fused_stream** stream) {
  if (!stream) return refuse_null("lstm_fused_open", "stream");
  *stream = nullptr;
  if (!path) return refuse_null("lstm_fused_open", "path");
  try {
    std::vector<char> bytes;
    if (!read_file(path, bytes)) return LSTM_FUSED_CANNOT_READ;
    return open_bytes(bytes.data(), bytes.size(), batch, stream);
  } catch (const std::bad_alloc&) {
    return fail(LSTM_FUSED_OUT_OF_MEMORY, "out of memory");
  }
}

lstm_fused_status lstm_fused_open_memory(const void* data, size_t size, int64_t batch,
                                         lstm_fused_stream** stream) {
  if (!stream) return refuse_null("lstm_fused_open_memory", "stream");
  *stream = nullptr;
  if (!data) return refuse_null("lstm_fused_open_memory", "data");
  return open_bytes(data, size, batch, stream);
}

lstm_fused_status lstm_fused_clone(const lstm_fused_stream* stream, lstm_fused_stream** clone) {
  if (!clone) return refuse_null("lstm_fused_clone", "clone");
  *clone = nullptr;
  if (!stream) return refuse_null("lstm_fused_clone", "stream");
  return guarded(LSTM_FUSED_INVALID_ARGUMENT,
                 [&] { *clone = new lstm_fused_stream{Stream(stream->stream)}; });
}

void lstm_fused_destroy(lstm_fused_stream* stream) { delete stream; }

int64_t lstm_fused_batch(const lstm_fused_stream* stream) {
  return stream ? stream->stream.batch() : 0;
}

int64_t lstm_fused_input_size(const lstm_fused_stream* stream) {
  return stream ? stream->stream.model().input_size() : 0;
}

int64_t lstm_fused_output_size(const lstm_fused_stream* stream) {
  return stream ? stream->stream.model().output_size() : 0;
}

int64_t lstm_fused_layers(const lstm_fused_stream* stream) {
  return stream ? static_cast<int64_t>(stream->stream.model().layers().size()) : 0;
}

int64_t lstm_fused_state_size(const lstm_fused_stream* stream) {
  if (!stream) return 0;
  int64_t size = 0;
  for (const StreamModel::Layer& layer : stream->stream.model().layers()) {
    size += stream->stream.batch() * (layer.output_size + layer.hidden_size);
  }
  return size;
}

lstm_fused_status lstm_fused_step(lstm_fused_stream* stream, const float* x, float* y) {
  if (!stream) return refuse_null("lstm_fused_step", "stream");
  if (!x) return refuse_null("lstm_fused_step", "x");
  if (!y) return refuse_null("lstm_fused_step", "y");
  stream->stream.step(x, y);
  return LSTM_FUSED_OK;
}

lstm_fused_status lstm_fused_run(lstm_fused_stream* stream, int64_t steps, const float* x,
                                 float* y) {
  if (!stream) return refuse_null("lstm_fused_run", "stream");
  if (steps < 0)
    return fail(LSTM_FUSED_INVALID_ARGUMENT, "lstm_fused_run: steps must not be negative");
  if (steps == 0) return LSTM_FUSED_OK;
  if (!x) return refuse_null("lstm_fused_run", "x");
  if (!y) return refuse_null("lstm_fused_run", "y");
  stream->stream.run(steps, x, y);
  return LSTM_FUSED_OK;
}

lstm_fused_status lstm_fused_reset(lstm_fused_stream* stream, const uint8_t* rows) {
  if (!stream) return refuse_null("lstm_fused_reset", "stream");
  stream->stream.reset(rows);
  return LSTM_FUSED_OK;
}

lstm_fused_status lstm_fused_get_state(const lstm_fused_stream* stream, float* state) {
  if (!stream) return refuse_null("lstm_fused_get_state", "stream");
  if (!state) return refuse_null("lstm_fused_get_state", "state");
  const Stream& from = stream->stream;
  for (size_t i = 0; i < from.model().layers().size(); ++i) {
    const StreamModel::Layer& layer = from.model().layers()[i];
    float* const c = state + from.batch() * layer.output_size;
    from.get_state(static_cast<int64_t>(i), state, c);
    state = c + from.batch() * layer.hidden_size;
  }
  return LSTM_FUSED_OK;
}

lstm_fused_status lstm_fused_set_state(lstm_fused_stream* stream, const float* state) {
  if (!stream) return refuse_null("lstm_fused_set_state", "stream");
  if (!state) return refuse_null("lstm_fused_set_state", "state");
  Stream& to = stream->stream;
  for (size_t i = 0; i < to.model().layers().size(); ++i) {
    const StreamModel::Layer& layer = to.model().layers()[i];
    const float* const c = state + to.batch() * layer.output_size;
    to.set_state(static_cast<int64_t>(i), state, c);
    state = c + to.batch() * layer.hidden_size;
  }
  return LSTM_FUSED_OK;
}
