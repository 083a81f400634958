// SPDX-License-Identifier: BSD-3-Clause
/* Runs every function of the C interface: all_calls FILE BATCH STEPS < x > y, of float32.
 *
 * The library is loaded beside watch_calls.c, which aborts at any allocation, lock or system call
 * that it knows while `watch_calls` is set.
 */
#include <lstm_fused.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern int watch_calls __attribute__((weak));

static void fail(const char* what) {
  fprintf(stderr, "%s: %s\n", what, lstm_fused_last_error());
  exit(1);
}

static void check(int holds, const char* what) {
  if (!holds) fail(what);
}

static void watch(int on) {
  if (&watch_calls) watch_calls = on;
}

int main(int argc, char** argv) {
  lstm_fused_stream *stream = NULL, *clone = NULL;
  int64_t batch, steps, inputs, outputs, i;
  float *x, *y, *again, *state;
  if (argc != 4) return 2;
  batch = atoll(argv[2]);
  steps = atoll(argv[3]);
  check(strchr(lstm_fused_version(), '.') != NULL, "version");

  /* Faults give a status and a sentence, and no stream. */
  check(strcmp(lstm_fused_last_error(), "") == 0, "no error yet");
  check(lstm_fused_open("/no/such/file", 1, &stream) == LSTM_FUSED_CANNOT_READ, "absent file");
  check(stream == NULL && strstr(lstm_fused_last_error(), "/no/such/file") != NULL, "its name");
  check(lstm_fused_open(argv[0], 1, &stream) == LSTM_FUSED_INVALID_FILE, "a foreign file");
  check(lstm_fused_open(NULL, 1, &stream) == LSTM_FUSED_INVALID_ARGUMENT, "null path");
  check(lstm_fused_open(argv[1], 1, NULL) == LSTM_FUSED_INVALID_ARGUMENT, "null stream");
  check(lstm_fused_open(argv[1], 0, &stream) == LSTM_FUSED_INVALID_ARGUMENT, "no rows");
  check(lstm_fused_open_memory("", 0, 1, &stream) == LSTM_FUSED_INVALID_FILE, "no bytes");
  check(lstm_fused_open_memory(NULL, 0, 1, &stream) == LSTM_FUSED_INVALID_ARGUMENT, "null bytes");
  check(lstm_fused_clone(NULL, &clone) == LSTM_FUSED_INVALID_ARGUMENT, "clone of null");
  check(lstm_fused_step(NULL, NULL, NULL) == LSTM_FUSED_INVALID_ARGUMENT, "step of null");
  check(lstm_fused_batch(NULL) == 0 && lstm_fused_state_size(NULL) == 0, "sizes of null");
  lstm_fused_destroy(NULL);

  if (lstm_fused_open(argv[1], batch, &stream) != LSTM_FUSED_OK) fail("open");
  inputs = batch * lstm_fused_input_size(stream);
  outputs = batch * lstm_fused_output_size(stream);
  check(lstm_fused_batch(stream) == batch && lstm_fused_layers(stream) >= 1, "sizes");
  x = malloc((size_t)(steps * inputs + 1) * sizeof(float));
  y = malloc((size_t)(steps * outputs + 1) * sizeof(float));
  again = malloc((size_t)(steps * outputs + 1) * sizeof(float));
  state = malloc((size_t)lstm_fused_state_size(stream) * sizeof(float));
  if (!x || !y || !again || !state) return 3;
  if (fread(x, sizeof(float), (size_t)(steps * inputs), stdin) != (size_t)(steps * inputs))
    return 4;
  check(lstm_fused_step(stream, NULL, y) == LSTM_FUSED_INVALID_ARGUMENT, "null x");
  check(lstm_fused_run(stream, -1, x, y) == LSTM_FUSED_INVALID_ARGUMENT, "steps below 0");
  check(lstm_fused_run(stream, 0, NULL, NULL) == LSTM_FUSED_OK, "no steps");

  watch(1);
  for (i = 0; i < steps; ++i) {
    check(lstm_fused_step(stream, x + i * inputs, y + i * outputs) == LSTM_FUSED_OK, "step");
  }
  check(lstm_fused_get_state(stream, state) == LSTM_FUSED_OK, "get_state");
  check(lstm_fused_reset(stream, NULL) == LSTM_FUSED_OK, "reset");
  check(lstm_fused_run(stream, steps, x, again) == LSTM_FUSED_OK, "run");
  watch(0);
  check(memcmp(y, again, (size_t)(steps * outputs) * sizeof(float)) == 0, "run has step's bits");

  /* A clone continues where its stream is; so does one that is given the state. */
  if (lstm_fused_clone(stream, &clone) != LSTM_FUSED_OK) fail("clone");
  check(lstm_fused_step(stream, x, again) == LSTM_FUSED_OK, "step");
  check(lstm_fused_step(clone, x, again + outputs) == LSTM_FUSED_OK, "step of the clone");
  check(memcmp(again, again + outputs, (size_t)outputs * sizeof(float)) == 0, "the clone's step");
  watch(1);
  check(lstm_fused_set_state(clone, state) == LSTM_FUSED_OK, "set_state");
  check(lstm_fused_step(clone, x, again + outputs) == LSTM_FUSED_OK, "step of the state");
  watch(0);
  check(memcmp(again, again + outputs, (size_t)outputs * sizeof(float)) == 0, "the state's step");
  lstm_fused_destroy(stream);
  lstm_fused_destroy(clone);
  fwrite(y, sizeof(float), (size_t)(steps * outputs), stdout);
  free(x);
  free(y);
  free(again);
  free(state);
  return 0;
}
