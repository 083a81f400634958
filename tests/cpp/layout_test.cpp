// SPDX-License-Identifier: BSD-3-Clause
// Layouts of sequences, groups of rows, and where rows of data stand.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "check.h"
#include "common/lstm.h"
#include "cpu/group.h"
#include "cpu/rows.h"

namespace lstm_fused::test {
namespace {

using Lengths = std::vector<int64_t>;
using cpu::Group;

const std::vector<Lengths>& padded_lengths() {
  static const std::vector<Lengths> lengths = {
      {},
      {5},
      {0},
      {5, 5, 5},
      {0, 0, 0},
      {3, 1, 5, 0},
      {1, 2, 3, 4},
      {4, 3, 2, 1},
      {0, 5, 0, 5, 2},
      {2, 2, 5, 5, 0, 1, 1, 5},
      {1, 0, 0, 0},
      {0, 0, 0, 1},
      {5, 1, 1, 1},
      {1, 1, 1, 5, 5, 5, 1, 1, 1, 3, 3, 0, 4},
  };
  return lengths;
}
constexpr int64_t kSteps = 5;

Lengths batch_sizes_of(const Lengths& lengths, int64_t steps) {
  Lengths sizes(steps, 0);
  for (int64_t t = 0; t < steps; ++t) {
    sizes[t] = std::count_if(lengths.begin(), lengths.end(), [t](int64_t n) { return n > t; });
  }
  return sizes;
}

int64_t batch_row(const SequenceLayout& layout, int64_t j) {
  return layout.row_of.empty() ? j : layout.row_of[j];
}

// What lstm.h says of every layout of rows with these lengths.
void check_layout(const SequenceLayout& layout, const Lengths& lengths, int64_t steps,
                  bool packed) {
  const int64_t batch = static_cast<int64_t>(lengths.size());
  CHECK_EQ(layout.steps(), steps);
  CHECK_EQ(layout.packed, packed);
  CHECK(layout.active == batch_sizes_of(lengths, steps));
  CHECK_EQ(static_cast<int64_t>(layout.step_offset.size()), steps + 1);
  int64_t offset = 0;
  for (int64_t t = 0; t <= steps; ++t) {
    CHECK_EQ(layout.step_offset[t], offset);
    if (t == steps) break;
    CHECK_EQ(layout.sequence_row(t, batch), packed ? offset : t * batch);
    offset += layout.active[t];
  }
  CHECK_EQ(layout.data_rows(), std::accumulate(lengths.begin(), lengths.end(), int64_t{0}));

  // Rows are numbered by decreasing length, each once.
  Lengths rows, sorted;
  for (int64_t j = 0; j < batch; ++j) {
    rows.push_back(batch_row(layout, j));
    sorted.push_back(lengths[rows.back()]);
  }
  CHECK(std::is_sorted(sorted.rbegin(), sorted.rend()));
  CHECK(cpu::sorted_lengths(layout, batch) == sorted);
  std::sort(rows.begin(), rows.end());
  for (int64_t n = 0; n < batch; ++n) CHECK_EQ(rows[n], n);
}

void test_layouts() {
  for (const Lengths& lengths : padded_lengths()) {
    const Scope scope("padded, N = ", lengths.size());
    check_layout(padded_layout(kSteps, lengths), lengths, kSteps, false);
    check_layout(padded_layout(kSteps + 2, lengths), lengths, kSteps + 2, false);
  }
  check_layout(padded_layout(0, {0, 0}), {0, 0}, 0, false);
  for (int64_t steps : {0, 1, 4}) {
    for (int64_t batch : {0, 1, 3}) {
      const Scope scope("dense, T = ", steps, ", N = ", batch);
      check_layout(dense_layout(steps, batch), Lengths(batch, steps), steps, false);
      CHECK(dense_layout(steps, batch).row_of.empty());
    }
  }
  // Rows of a packed sequence that have no data may follow those that have.
  for (const Lengths& lengths : {Lengths{4, 2, 2, 1}, Lengths{1}, Lengths{3, 3}, Lengths{2, 0, 0},
                                 Lengths{}, Lengths{5, 4, 3, 2, 1, 0}}) {
    const Scope scope("packed, N = ", lengths.size());
    const int64_t steps = lengths.empty() ? 0 : lengths[0];
    check_layout(packed_layout(batch_sizes_of(lengths, steps)), lengths, steps, true);
    CHECK(packed_layout(batch_sizes_of(lengths, steps)).row_of.empty());
  }
}

void check_error(const std::string& error, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    const Scope scope("'", error, "' should say '", part, "'");
    CHECK(error.find(part) != std::string::npos);
  }
}

void test_errors() {
  check_error(error_of([] { padded_layout(5, {3, 6}); }),
              {"lengths", "between 0 and T", "5", "got 6", "row 1"});
  check_error(error_of([] { padded_layout(5, {-1, 3}); }),
              {"lengths", "between 0 and T", "5", "got -1", "row 0"});
  check_error(error_of([] { padded_layout(0, {1}); }), {"lengths", "0", "got 1", "row 0"});
  check_error(error_of([] { packed_layout({3, 4}); }), {"batch_sizes", "got 4", "step 1"});
  check_error(error_of([] { packed_layout({3, 3, 0}); }), {"batch_sizes", "got 0", "step 2"});
  check_error(error_of([] { packed_layout({-2}); }), {"batch_sizes", "got -2", "step 0"});
  CHECK_EQ(error_of([] { padded_layout(5, {0, 5}); }), "");
  CHECK_EQ(error_of([] { packed_layout({4, 4, 1}); }), "");
}

void check_groups(const SequenceLayout& layout, int64_t batch, int row_groups, int directions) {
  LstmShape shape;
  shape.steps = layout.steps();
  shape.batch = batch;
  shape.directions = directions;
  cpu::LstmPlan plan;
  plan.row_groups = row_groups;
  const Lengths lengths = cpu::sorted_lengths(layout, batch);
  const std::vector<Group> groups = cpu::make_groups(shape, layout, lengths, plan);
  CHECK_EQ(static_cast<int>(groups.size()), row_groups * directions);

  Lengths end(directions, 0);
  for (const Group& group : groups) {
    // The groups of a direction follow one another.
    CHECK(group.direction >= 0 && group.direction < directions);
    CHECK_EQ(group.begin, end[group.direction]);
    CHECK_LE(group.begin, group.end);
    CHECK_EQ(group.rows(), group.end - group.begin);
    CHECK_EQ(group.batch, batch);
    CHECK(group.layout == &layout);
    end[group.direction] = group.end;

    // They have about the same number of data rows; none could hand a row on to be better.
    int64_t data_rows = 0, longest = 0;
    for (int64_t j = group.begin; j < group.end; ++j) {
      data_rows += lengths[j];
      longest = std::max(longest, lengths[j]);
    }
    CHECK_EQ(group.steps, longest);
    const double share = static_cast<double>(layout.data_rows()) / row_groups;
    CHECK_LE(std::fabs(data_rows - share), (lengths.empty() ? 0 : lengths[0]) + 1.0);

    // Its rows of each step are those of its rows that are long enough.
    CHECK_EQ(group.active(-1), 0);
    CHECK_EQ(group.active(layout.steps()), 0);
    for (int64_t t = 0; t < layout.steps(); ++t) {
      int64_t active = 0;
      for (int64_t j = group.begin; j < group.end; ++j) active += lengths[j] > t;
      CHECK_EQ(group.active(t), active);
    }
    for (int64_t j = 0; j < group.rows(); ++j) {
      CHECK_EQ(group.batch_row(j), batch_row(layout, group.begin + j));
    }
  }
  for (int64_t rows : end) CHECK_EQ(rows, batch);
}

void test_groups() {
  for (int row_groups : {1, 2, 3, 7}) {
    for (int directions : {1, 2}) {
      const Scope scope(row_groups, " groups, ", directions, " directions");
      for (const Lengths& lengths : padded_lengths()) {
        check_groups(padded_layout(kSteps, lengths), lengths.size(), row_groups, directions);
      }
      check_groups(dense_layout(3, 64), 64, row_groups, directions);
      check_groups(dense_layout(0, 3), 3, row_groups, directions);
      check_groups(packed_layout({4, 4, 2, 1}), 6, row_groups, directions);
    }
  }
  // Equal rows go in equal numbers.
  const SequenceLayout layout = dense_layout(10, 64);
  LstmShape shape;
  shape.batch = 64;
  cpu::LstmPlan plan;
  plan.row_groups = 4;
  for (const Group& group :
       cpu::make_groups(shape, layout, cpu::sorted_lengths(layout, 64), plan)) {
    CHECK_EQ(group.rows(), 16);
  }
}

// The row that a view of group rows shows as its row j, from its own arithmetic.
template <typename View>
int64_t bytes_from(const void* base, const View& view, int64_t j, int64_t size) {
  const int64_t row = view.order ? view.order[j] : j;
  return static_cast<const char*>(view.base) - static_cast<const char*>(base) +
         row * view.stride * size;
}

void check_views(const SequenceLayout& layout, int64_t batch, int64_t columns, int64_t size) {
  // A pointer that nobody follows.
  char* base = reinterpret_cast<char*>(uintptr_t{1} << 44);
  LstmShape shape;
  shape.steps = layout.steps();
  shape.batch = batch;
  cpu::LstmPlan plan;
  plan.row_groups = 3;
  const Lengths lengths = cpu::sorted_lengths(layout, batch);
  const int64_t last = layout.steps() - 1;
  for (const Group& group : cpu::make_groups(shape, layout, lengths, plan)) {
    for (int64_t t : {int64_t{0}, last / 2, last}) {
      const auto sequence = group.sequence_rows<cpu::Rows>(base, columns, size, t);
      const auto data = group.data_rows<cpu::MutableRows>(base, columns, size, t);
      const auto state = group.batch_rows<cpu::Rows>(base, columns, size);
      const cpu::Resets resets = group.resets(reinterpret_cast<uint8_t*>(base), t, group.active(t));
      for (int64_t j : {int64_t{0}, group.active(t) - 1}) {
        if (j < 0 || j >= group.active(t)) continue;
        const int64_t row = batch_row(layout, group.begin + j);
        const int64_t of_sequence = (layout.packed ? layout.step_offset[t] : t * batch) + row;
        CHECK_EQ(bytes_from(base, sequence, j, size), of_sequence * columns * size);
        CHECK_EQ(bytes_from(base, data, j, size),
                 (layout.step_offset[t] + group.begin + j) * columns * size);
        CHECK_EQ(bytes_from(base, state, j, size), row * columns * size);
        CHECK_EQ(
            resets.flags + (resets.order ? resets.order[j] : j) - reinterpret_cast<uint8_t*>(base),
            t * batch + row);
        CHECK_EQ(resets.limit, group.active(t));
      }
    }
  }
  const Group group = cpu::make_groups(shape, layout, lengths, plan)[0];
  CHECK(group.sequence_rows<cpu::Rows>(static_cast<const void*>(nullptr), 4, 4, last).base ==
        nullptr);
  CHECK(group.data_rows<cpu::MutableRows>(static_cast<void*>(nullptr), 4, 4, last).base == nullptr);
  CHECK(group.resets(nullptr, 0, 3).flags == nullptr);
}

// Offsets beyond 2^31 elements, and 2^32 rows.
void test_wide_offsets() {
  const int64_t columns = 4 * 4096;
  Lengths unsorted(3000, 3000), falling(3000, 3000);
  for (int64_t n = 0; n < 3000; ++n) unsorted[n] -= (n * 7) % 11;
  for (int64_t n = 0; n < 3000; ++n) falling[n] -= n / 2;
  const SequenceLayout padded = padded_layout(3000, unsorted);
  const SequenceLayout packed = packed_layout(batch_sizes_of(falling, 3000));
  const SequenceLayout dense = dense_layout(70000, 70000);
  CHECK_LT(int64_t{1} << 32, padded.data_rows() * columns);
  CHECK_EQ(dense.data_rows(), int64_t{70000} * 70000);
  check_views(padded, 3000, columns, 4);
  check_views(packed, 3000, columns, 8);
  check_views(dense, 70000, columns, 2);
  check_views(padded_layout(kSteps, {0, 5, 0, 5, 2}), 5, 3, 4);
}

// ---- Where rows of data stand ---------------------------------------------------------------

void test_rows() {
  constexpr int64_t kRowBytes = 12, kStateBytes = 8;
  // Pointers that nobody follows.
  const char* sequence = reinterpret_cast<char*>(uintptr_t{1} << 44);
  const char* h_0 = reinterpret_cast<char*>(uintptr_t{1} << 45);
  const char* zeros = reinterpret_cast<char*>(uintptr_t{1} << 46);
  for (const Lengths& lengths : padded_lengths()) {
    const int64_t batch = static_cast<int64_t>(lengths.size());
    const SequenceLayout layout = padded_layout(kSteps, lengths);
    std::vector<uint8_t> reset_mask(kSteps * batch);
    for (size_t i = 0; i < reset_mask.size(); ++i) reset_mask[i] = i % 3 == 0;

    const cpu::RowPointers rows = cpu::data_rows(layout, batch, sequence, kRowBytes);
    CHECK_EQ(static_cast<int64_t>(rows.size()), layout.data_rows());
    for (int64_t t = 0; t < kSteps; ++t) {
      for (int64_t j = 0; j < layout.active[t]; ++j) {
        CHECK(rows[layout.step_offset[t] + j] ==
              sequence + (t * batch + batch_row(layout, j)) * kRowBytes);
      }
    }
    // The last two of three columns are the state's.
    for (int direction : {0, 1}) {
      for (const uint8_t* mask :
           {static_cast<const uint8_t*>(nullptr), static_cast<const uint8_t*>(reset_mask.data())}) {
        const cpu::HPrevSource previous = {sequence + 4, kRowBytes,      h_0,  kStateBytes,
                                           mask,         direction == 1, zeros};
        const cpu::RowPointers states = cpu::h_prev_rows(layout, batch, previous);
        CHECK_EQ(static_cast<int64_t>(states.size()), layout.data_rows());
        for (int64_t j = 0; j < batch; ++j) {
          const int64_t n = batch_row(layout, j);
          for (int64_t t = 0; t < lengths[n]; ++t) {
            const int64_t before = direction == 0 ? t - 1 : t + 1;
            const bool first = before < 0 || before == lengths[n];
            const char* wanted =
                first ? h_0 + n * kStateBytes : sequence + 4 + (before * batch + n) * kRowBytes;
            if (mask && mask[t * batch + n]) wanted = zeros;
            CHECK(states[layout.step_offset[t] + j] == wanted);
          }
        }
      }
    }
  }
  const cpu::RowPointers matrix = cpu::matrix_rows(sequence, 3, kRowBytes);
  CHECK(matrix == cpu::RowPointers({sequence, sequence + kRowBytes, sequence + 2 * kRowBytes}));
}

// Each sample's data rows are those of its batch rows, in step order.
void check_sample_rows(const SequenceLayout& layout, int64_t samples) {
  const Scope scope(samples, " samples");
  const cpu::SampleRows found = cpu::sample_rows(layout, samples);
  CHECK_EQ(static_cast<int64_t>(found.first.size()), samples + 1);
  CHECK_EQ(found.first.back(), static_cast<int64_t>(found.rows.size()));
  for (int64_t sample = 0; sample < samples; ++sample) {
    Lengths wanted;
    for (int64_t t = 0; t < layout.steps(); ++t) {
      for (int64_t j = 0; j < layout.active[t]; ++j) {
        if (batch_row(layout, j) % samples == sample) wanted.push_back(layout.step_offset[t] + j);
      }
    }
    CHECK(Lengths(found.rows.begin() + found.first[sample],
                  found.rows.begin() + found.first[sample + 1]) == wanted);
  }
}

void test_sample_rows() {
  for (const int64_t samples : {1, 2, 3, 6}) {
    check_sample_rows(padded_layout(kSteps, {3, 1, 5, 0, 2, 5}), samples);
    check_sample_rows(dense_layout(3, 6), samples);
    check_sample_rows(dense_layout(0, 6), samples);
    check_sample_rows(packed_layout({6, 4, 4, 1}), samples);
  }
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  lstm_fused::test::test_layouts();
  lstm_fused::test::test_errors();
  lstm_fused::test::test_groups();
  lstm_fused::test::test_wide_offsets();
  lstm_fused::test::test_rows();
  lstm_fused::test::test_sample_rows();
  return lstm_fused::test::exit_status();
}
