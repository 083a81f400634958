// SPDX-License-Identifier: BSD-3-Clause
/* amplifier STREAM INPUT.wav OUTPUT.wav: runs a stream over a mono WAV file of 16 bits, a sample at
 * a time, and prints how fast. */
#define _POSIX_C_SOURCE 199309L
#include <lstm_fused.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { HEADER = 44 }; /* bytes before the samples, of files that hold nothing else */

static int fail(const char* what, const char* detail) {
  fprintf(stderr, "amplifier: %s: %s\n", what, detail);
  return 1;
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static uint32_t little_endian(const unsigned char* bytes, int count) {
  uint32_t value = 0;
  while (count-- > 0) value = value << 8 | bytes[count];
  return value;
}

/* The whole file; null where it cannot be read. */
static unsigned char* read_file(const char* path, long* size) {
  unsigned char* bytes = NULL;
  FILE* file = fopen(path, "rb");
  if (!file) return NULL;
  if (fseek(file, 0, SEEK_END) == 0 && (*size = ftell(file)) >= 0 &&
      fseek(file, 0, SEEK_SET) == 0) {
    bytes = malloc((size_t)*size + 1);
    if (bytes && fread(bytes, 1, (size_t)*size, file) != (size_t)*size) {
      free(bytes);
      bytes = NULL;
    }
  }
  fclose(file);
  return bytes;
}

int main(int argc, char** argv) {
  lstm_fused_stream* stream;
  unsigned char* wav;
  long size = 0, count, i;
  uint32_t rate;
  double begin, taken;
  FILE* out;
  if (argc != 4) return fail("usage", "amplifier STREAM INPUT.wav OUTPUT.wav");

  if (lstm_fused_open(argv[1], 1, &stream) != LSTM_FUSED_OK) {
    return fail("cannot open the stream", lstm_fused_last_error());
  }
  if (lstm_fused_input_size(stream) != 1 || lstm_fused_output_size(stream) != 1) {
    return fail(argv[1], "the stream must take and give one number a step");
  }
  wav = read_file(argv[2], &size);
  if (!wav) return fail("cannot read", argv[2]);
  /* One chunk of 16-bit samples (PCM), one channel. */
  if (size < HEADER || memcmp(wav, "RIFF", 4) != 0 || memcmp(wav + 36, "data", 4) != 0 ||
      little_endian(wav + 20, 2) != 1 || little_endian(wav + 22, 2) != 1 ||
      little_endian(wav + 34, 2) != 16) {
    return fail(argv[2], "wanted a plain WAV file, mono, 16 bits");
  }
  rate = little_endian(wav + 24, 4);
  count = (size - HEADER) / 2;

  begin = seconds();
  for (i = 0; i < count; ++i) {
    unsigned char* sample = wav + HEADER + 2 * i;
    const float x = (float)(int16_t)little_endian(sample, 2) / 32768.0f;
    float y;
    int16_t rounded;
    lstm_fused_step(stream, &x, &y);
    rounded = (int16_t)lrintf((y < -1 ? -1 : y > 1 ? 1 : y) * 32767.0f);
    sample[0] = (unsigned char)(rounded & 0xFF);
    sample[1] = (unsigned char)((uint16_t)rounded >> 8);
  }
  taken = seconds() - begin;

  out = fopen(argv[3], "wb");
  if (!out || fwrite(wav, 1, (size_t)size, out) != (size_t)size || fclose(out) != 0) {
    return fail("cannot write", argv[3]);
  }
  printf("%ld samples in %.3f s: %.0f a second, %.2f %% of real time at %u Hz\n", count, taken,
         (double)count / taken, 100 * taken * rate / (double)count, (unsigned)rate);
  free(wav);
  lstm_fused_destroy(stream);
  return 0;
}
