#include "tessera/encode/exec.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "tessera/base/command.h"
#include "tessera/base/error.h"
#include "tessera/data/feature.h"
#include "tessera/data/npy.h"

namespace tessera {
namespace {

constexpr size_t kOutputStart = size_t{16} << 20, kOutputOfOne = size_t{256} << 10;

constexpr const char* kNotFinite = "vectors with entries that are no finite numbers";

void count_failure(ExecAnswers& answers, const std::string& reason) {
  answers.failures[reason] = answers.failures.value(reason, int64_t{0}) + 1;
}

bool is_finite(const std::vector<float>& row) {
  return std::all_of(row.begin(), row.end(), [](float v) { return std::isfinite(v); });
}

void read_npy_answer(const std::string& output, size_t n, ExecAnswers& answers) {
  const std::string what = "the command's .npy";
  const NpyHeader head = parse_npy(output, what);
  const bool numbers =
      head.dtype == torch::kHalf || head.dtype == torch::kFloat || head.dtype == torch::kDouble;
  if (!numbers || head.shape.size() != 2 || head.shape[0] != static_cast<int64_t>(n)) {
    throw data_error("{}: wanted floats [{}, width], found [{}]", what, n,
                     fmt::join(head.shape, ", "));
  }
  const int64_t width = head.shape[1];
  const size_t item = head.dtype == torch::kHalf ? 2 : head.dtype == torch::kFloat ? 4 : 8;
  for (size_t r = 0; r < n; ++r) {
    auto& row = answers.rows[r];
    row.resize(static_cast<size_t>(width));
    floats_of(head.dtype, output.data() + head.data_offset + r * static_cast<size_t>(width) * item,
              row.data(), width);
    if (is_finite(row)) continue;
    count_failure(answers, kNotFinite);
    row.clear();
  }
}

void read_json_answers(const std::string& output, const std::vector<Json>& requests,
                       ExecAnswers& answers) {
  std::unordered_map<std::string, size_t> place;
  for (size_t r = 0; r < requests.size(); ++r) {
    place[requests[r]["id"].get<std::string>()] = r;
  }
  std::vector<bool> answered(requests.size());
  const auto fail = [&](const std::string& reason) { count_failure(answers, reason); };
  int64_t line = 0;
  for (size_t at = 0; at < output.size();) {
    const size_t end = std::min(output.find('\n', at), output.size());
    const std::string text = output.substr(at, end - at);
    at = end + 1;
    ++line;
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const Json answer = Json::parse(text, nullptr, false);
    if (!answer.is_object() || !answer.contains("id") || !answer["id"].is_string()) {
      throw data_error(
          "the command's line {}: wanted {{\"id\": \"..\", \"vector\": [..]}}, found '{}'", line,
          printable(text));
    }
    const auto found = place.find(answer["id"].get<std::string>());
    if (found == place.end()) {
      fail("ids that were not asked for");
      continue;
    }
    if (answered[found->second])
      throw data_error("the command answers id '{}' twice", printable(found->first));
    answered[found->second] = true;
    const auto vector = answer.find("vector");
    if (vector == answer.end() || !vector->is_array() || vector->empty()) {
      fail(answer.contains("error") ? "errors of the command" : "answers without a vector");
      continue;
    }
    std::vector<float> row;
    for (const auto& value : *vector) {
      row.push_back(value.is_number() ? value.get<float>() : std::nanf(""));
    }
    if (!is_finite(row)) {
      fail(kNotFinite);
      continue;
    }
    answers.rows[found->second] = std::move(row);
  }
  for (const bool done : answered) {
    if (!done) fail("requests without an answer");
  }
}

}  // namespace

ExecAnswers run_exec(const std::string& command, const std::vector<Json>& requests,
                     const std::function<bool()>& stop_requested) {
  std::string input, output;
  for (const auto& request : requests) {
    input += request.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  }
  const size_t limit = kOutputStart + kOutputOfOne * requests.size();
  const auto code =
      run_command(command, input, limit, output, "the encoder's command", stop_requested);
  if (!code) {
    throw RunError(Exit::interrupted_without_checkpoint,
                   "interrupted: no feature was written, call again to start over");
  }
  if (*code != 0) {
    throw data_error("the encoder's command ended with exit code {}: {}", *code,
                     printable(command, 200));
  }
  ExecAnswers answers;
  answers.rows.resize(requests.size());
  if (output.rfind("\x93NUMPY", 0) == 0) {
    read_npy_answer(output, requests.size(), answers);
  } else {
    read_json_answers(output, requests, answers);
  }
  return answers;
}

}  // namespace tessera
