// SPDX-License-Identifier: BSD-3-Clause
/*
 * lstm_fused: LSTMs a step at a time, in C, without Python and without torch.
 *
 * A stream holds a stack of LSTM layers, with an optional linear layer behind it, and its state.
 * `lstm_fused.save_stream(module, path)` in Python writes the file that lstm_fused_open reads; the
 * format is described in docs/stream_format.md.
 *
 * Real time: lstm_fused_step, lstm_fused_run, lstm_fused_reset, lstm_fused_get_state and
 * lstm_fused_set_state neither allocate, lock, wait nor call the system, and take the same number
 * of instructions at every call. Denormal numbers count as zero in them.
 *
 * Threads: a stream serves one thread at a time. Streams made by lstm_fused_clone share their
 * weights, which nobody writes, and may run at once.
 *
 * Arrays are float32, row-major and contiguous; they need no alignment. N is the batch of the
 * stream, D = lstm_fused_input_size, O = lstm_fused_output_size.
 *
 * Functions never raise C++ exceptions. Those that can fail give a status, and
 * lstm_fused_last_error tells, for the calling thread, what was wrong.
 */
#ifndef LSTM_FUSED_H
#define LSTM_FUSED_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define LSTM_FUSED_API
#else
#define LSTM_FUSED_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lstm_fused_stream lstm_fused_stream;

typedef enum lstm_fused_status {
  LSTM_FUSED_OK = 0,
  LSTM_FUSED_INVALID_ARGUMENT = 1, /* a null pointer, or a number out of range */
  LSTM_FUSED_CANNOT_READ = 2,      /* the file is not there, or cannot be read */
  LSTM_FUSED_INVALID_FILE = 3,     /* no stream's file, damaged, or of a later format */
  LSTM_FUSED_OUT_OF_MEMORY = 4
} lstm_fused_status;

/* The version of the library, as "0.1.0". */
LSTM_FUSED_API const char* lstm_fused_version(void);

/* What the last call of this thread that failed found wrong: a sentence, valid until this thread's
 * next call that fails; "" before. */
LSTM_FUSED_API const char* lstm_fused_last_error(void);

/* Makes a stream of `batch` rows from a file, with a state of zero. On failure *stream is null. */
LSTM_FUSED_API lstm_fused_status lstm_fused_open(const char* path, int64_t batch,
                                                 lstm_fused_stream** stream);
/* The same from the bytes of a file, which may be freed afterwards. */
LSTM_FUSED_API lstm_fused_status lstm_fused_open_memory(const void* data, size_t size,
                                                        int64_t batch, lstm_fused_stream** stream);
/* Another stream with the weights, which are shared, and a copy of the state. */
LSTM_FUSED_API lstm_fused_status lstm_fused_clone(const lstm_fused_stream* stream,
                                                  lstm_fused_stream** clone);
/* Null is allowed. */
LSTM_FUSED_API void lstm_fused_destroy(lstm_fused_stream* stream);

/* Sizes of a stream; 0 for null. */
LSTM_FUSED_API int64_t lstm_fused_batch(const lstm_fused_stream* stream);
LSTM_FUSED_API int64_t lstm_fused_input_size(const lstm_fused_stream* stream);
LSTM_FUSED_API int64_t lstm_fused_output_size(const lstm_fused_stream* stream);
LSTM_FUSED_API int64_t lstm_fused_layers(const lstm_fused_stream* stream);
/* Floats of the state: for each layer h (N, P), then c (N, H). */
LSTM_FUSED_API int64_t lstm_fused_state_size(const lstm_fused_stream* stream);

/* One step: x (N, D), y (N, O). They must not overlap. */
LSTM_FUSED_API lstm_fused_status lstm_fused_step(lstm_fused_stream* stream, const float* x,
                                                 float* y);
/* `steps` steps: x (steps, N, D), y (steps, N, O), with the bits of that many lstm_fused_step. */
LSTM_FUSED_API lstm_fused_status lstm_fused_run(lstm_fused_stream* stream, int64_t steps,
                                                const float* x, float* y);
/* Sets the state of the rows n with rows[n] != 0 to zero, or of all where `rows` is null. */
LSTM_FUSED_API lstm_fused_status lstm_fused_reset(lstm_fused_stream* stream, const uint8_t* rows);
/* Reads or replaces the state: lstm_fused_state_size floats. */
LSTM_FUSED_API lstm_fused_status lstm_fused_get_state(const lstm_fused_stream* stream,
                                                      float* state);
LSTM_FUSED_API lstm_fused_status lstm_fused_set_state(lstm_fused_stream* stream,
                                                      const float* state);

#ifdef __cplusplus
}
#endif

#endif /* LSTM_FUSED_H */
