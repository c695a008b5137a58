#include "tessera/study/tensorboard.h"

#include <bit>
#include <cmath>
#include <ctime>
#include <fstream>
#include <string>
#include <string_view>

#include "tessera/base/error.h"
#include "tessera/train/metrics_log.h"

namespace tessera {
namespace {

/// CRC-32C (Castagnoli), reflected.
uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = ~0U;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) != 0 ? 0x82f63b78U : 0U);
  }
  return ~crc;
}

std::string little_endian(uint64_t value, int n_bytes) {
  std::string out;
  for (int i = 0; i < n_bytes; ++i) out += static_cast<char>(value >> (8 * i));
  return out;
}

std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  return out + static_cast<char>(value);
}

// Fields of protobuf's wire format: the tag byte is number * 8 + kind.
std::string bytes_field(int number, const std::string& bytes) {
  return static_cast<char>(number * 8 + 2) + varint(bytes.size()) + bytes;
}

/// TensorFlow's event.proto: wall_time = 1, step = 2, then `what` (file_version = 3, summary = 5).
std::string event(double time, uint64_t step, const std::string& what) {
  return '\x09' + little_endian(std::bit_cast<uint64_t>(time), 8) + '\x10' + varint(step) + what;
}

/// summary.proto: value = 1 {tag = 1, simple_value = 2}.
std::string scalar(const std::string& tag, double value) {
  const auto bits = std::bit_cast<uint32_t>(static_cast<float>(value));
  return bytes_field(1, bytes_field(1, tag) + '\x15' + little_endian(bits, 4));
}

/// TFRecord: length, its masked CRC, the bytes, their masked CRC.
std::string record(const std::string& bytes) {
  const auto masked = [](std::string_view of) {
    const uint32_t crc = crc32c(of);
    return little_endian(((crc >> 15) | (crc << 17)) + 0xa282ead8U, 4);
  };
  const std::string length = little_endian(bytes.size(), 8);
  return length + masked(length) + bytes + masked(bytes);
}

std::string scalars_of(const MetricsLine& line) {
  std::string out;
  for (const auto& [part, value] : line.losses) out += scalar("loss/" + part, value);
  for (const auto& [name, value] : line.values) out += scalar(line.phase + "/" + name, value);
  return out;
}

}  // namespace

TensorboardFiles::TensorboardFiles(const std::filesystem::path& run)
    : metrics_(run / "metrics.jsonl") {
  std::error_code error;
  std::filesystem::remove_all(run / "tb", error);
  std::filesystem::create_directories(run / "tb", error);
  events_ = run / "tb" / fmt::format("events.out.tfevents.{}.tessera", std::time(nullptr));
}

void TensorboardFiles::update() {
  const auto now = static_cast<double>(std::time(nullptr));
  std::string out;
  if (read_ == 0) out += record(event(now, 0, bytes_field(3, "brain.Event:2")));
  for (const MetricsLine& line : read_metrics_log(metrics_, read_)) {
    const std::string scalars = scalars_of(line);
    if (scalars.empty() || line.epoch.value_or(-1) < 0) continue;
    out += record(event(now, static_cast<uint64_t>(*line.epoch), bytes_field(5, scalars)));
  }
  std::ofstream file(events_, std::ios::app | std::ios::binary);
  file << out;
  file.flush();
  if (!file) {
    throw RunError(Exit::failed,
                   fmt::format("cannot write {}: disk full or not writable", events_.string()));
  }
}

}  // namespace tessera
