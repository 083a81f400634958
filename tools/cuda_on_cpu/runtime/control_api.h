// SPDX-License-Identifier: BSD-3-Clause
// How a test controls the emulated device. All functions are to be called from one thread.
#pragma once

#include <cstdint>

#define EMU_API extern "C" __attribute__((visibility("default")))

// A fact of the device, or a setting of the emulation, by its name in device.h. Returns -1 if there
// is none of that name.
EMU_API int emu_set(const char* name, int64_t value);
EMU_API int64_t emu_get(const char* name);

// The mutations of all loaded modules, one to a line: number, module, target, line in the
// PTX, function, kind and instruction, with tabs between. emu_set("mutation", number) puts one in
// force.
EMU_API const char* emu_mutations();
// How often the mutation took effect since emu_set was last called.
EMU_API uint64_t emu_mutation_hits();

// Makes host memory known as device memory.
EMU_API void emu_register(const void* at, uint64_t bytes, const char* name);
EMU_API void emu_unregister(const void* at);

// What the last error was about, in full. Clearing it also ends a sticky error.
EMU_API const char* emu_last_error();
EMU_API void emu_clear_error();

// Races found since the last clearing, one to a line, each pair of instructions once.
EMU_API const char* emu_races();
EMU_API uint64_t emu_race_count();
EMU_API void emu_clear_races();

// Statistics of all launches since the last clearing, as JSON: kernel name -> figures.
EMU_API const char* emu_statistics();
EMU_API void emu_clear_statistics();

// The math modes that cuBLAS's GEMMs ran with since the last clearing, with spaces between.
EMU_API const char* emu_gemm_math_modes();
EMU_API void emu_clear_gemm_math_modes();

// Fiber switches since the process began.
EMU_API uint64_t emu_switches();
