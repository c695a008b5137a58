#include "tessera/folder/manifest.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <ostream>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/base/text.h"
#include "tessera/data/mapped_file.h"
#include "tessera/data/npy.h"
#include "tessera/read/known_sets.h"
#include "tessera/read/read_rows.h"

namespace tessera {
namespace {

using Kind = FeatureSource::Kind;

constexpr size_t kAmazonId = 10;
constexpr size_t kAmazonWidth = 4096;
constexpr size_t kAmazonRecord = kAmazonId + kAmazonWidth * sizeof(float);

bool is_modality(std::string_view name) {
  return !name.empty() && name[0] >= 'a' && name[0] <= 'z' && name.size() <= 64 &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
         });
}

/// Adds the id of the next row; exit 3, with `where` as its place, for one that cannot be an id.
void add_id(Vocabulary& ids, std::string_view id, const std::string& where) {
  const std::string problem = id_problem(id, "feature");
  if (!problem.empty()) throw data_error("{}: {}", where, problem);
  const int64_t n = ids.size();
  const int32_t index = ids.add(id);
  if (index != n) {
    throw data_error("{}: id '{}' is there twice, first for row {}; each id names one row", where,
                     printable(id), index);
  }
}

/// Calls `line(text, number)` for each line, numbers from 1; no ends, no byte-order mark.
template <typename Fn>
void each_line(std::string_view text, Fn line) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  for (int64_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view one = text.substr(0, end);
    if (one.ends_with('\r')) one.remove_suffix(1);
    line(one, number);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

Vocabulary read_ids(const fs::path& path, int64_t n_rows, const fs::path& rows_path) {
  const MappedFile file = map_file(path);
  Vocabulary ids;
  each_line(file.bytes, [&](std::string_view id, int64_t number) {
    add_id(ids, id, fmt::format("{}:{}", path.string(), number));
  });
  if (ids.size() != n_rows) {
    throw data_error("{} has {} ids, {} has {} rows; wanted one id a row", path.string(),
                     ids.size(), rows_path.string(), n_rows);
  }
  return ids;
}

/// One line of a text table: the id, then the cells after it, unparsed.
struct TableLine {
  std::string id;
  std::string_view cells;
};

TableLine split_line(std::string_view line, char delimiter) {
  TableLine out;
  size_t at = 0;
  if (line.starts_with('"')) {  // quoted, a doubled quote stands for one
    for (at = 1; at < line.size(); ++at) {
      if (line[at] != '"') {
        out.id += line[at];
      } else if (at + 1 < line.size() && line[at + 1] == '"') {
        out.id += line[at++];
      } else {
        ++at;
        break;
      }
    }
    at = line.find(delimiter, std::min(at, line.size()));
  } else {
    at = line.find(delimiter);
    out.id = line.substr(0, at);
  }
  if (at != std::string_view::npos) out.cells = line.substr(at + 1);
  return out;
}

/// Takes the first cell off `cells` and parses it; false when it is no number.
bool take_number(std::string_view& cells, char delimiter, float& value) {
  const size_t end = cells.find(delimiter);
  std::string_view cell = cells.substr(0, end);
  cells = end == std::string_view::npos ? std::string_view() : cells.substr(end + 1);
  while (cell.starts_with(' ') || cell.starts_with('+')) cell.remove_prefix(1);
  while (cell.ends_with(' ')) cell.remove_suffix(1);
  const auto [rest, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
  if (rest != cell.data() + cell.size() || cell.empty()) return false;
  if (error == std::errc::result_out_of_range) {  // too small is zero, too large is not finite
    double wide = 0;
    const auto again = std::from_chars(cell.data(), cell.data() + cell.size(), wide);
    value = again.ec == std::errc{} && std::fabs(wide) < 1 ? 0.0f
                                                           : std::numeric_limits<float>::infinity();
    return true;
  }
  return error == std::errc{};
}

/// An opened source: the facts, and how to walk its rows.
struct Opened {
  FeatureInfo info;
  MappedArray array;   // npy, safetensors
  MappedFile file;     // table, amazon
  char delimiter = 0;  // table
  bool header = false;
  std::vector<fs::path> files;  // folder
  int64_t ignored_files = 0;
};

void open_table(const FeatureSource& source, Opened& out) {
  const std::string what = source.path.string();
  out.file = map_file(source.path);
  const std::string_view text = out.file.bytes;
  if (text.empty()) throw data_error("{}: empty file, wanted an id and numbers a line", what);
  const std::string_view first = text.substr(0, text.find('\n'));
  const auto count = [&](char c) { return std::count(first.begin(), first.end(), c); };
  out.delimiter = count('\t') > 0 ? '\t' : count(',') >= count(';') ? ',' : ';';
  FeatureInfo& info = out.info;
  each_line(text, [&](std::string_view line, int64_t number) {
    if (line.empty()) return;
    const TableLine parts = split_line(line, out.delimiter);
    if (number == 1) {
      std::string_view cells = parts.cells;
      float value = 0;
      out.header = !cells.empty() && !take_number(cells, out.delimiter, value);
      if (out.header) return;
    }
    const std::string where = fmt::format("{}:{}", what, number);
    const int64_t width =
        parts.cells.empty() ? 0
                            : 1 + std::count(parts.cells.begin(), parts.cells.end(), out.delimiter);
    if (width == 0) throw data_error("{}: no number after the id", where);
    if (width > kMaxFeatureWidth) {
      throw data_error("{}: {} numbers, wanted at most {}", where, width, kMaxFeatureWidth);
    }
    if (info.width == 0) info.width = width;
    if (width != info.width) {
      throw data_error("{}: {} numbers, the rows before have {}", where, width, info.width);
    }
    add_id(info.ids, parts.id, where);
  });
  info.n_rows = info.ids.size();
  if (info.n_rows == 0) throw data_error("{}: no rows, wanted an id and numbers a line", what);
}

/// The head of a file of one row, of `width` numbers if that is not 0.
NpyHeader single_row(const MappedFile& bytes, const fs::path& file, int64_t width) {
  NpyHeader head = parse_npy(bytes.bytes, file.string());
  const size_t n_dimensions = head.shape.size();
  const int64_t found = n_dimensions == 0 ? 0 : head.shape.back();
  if (found < 1 || found > kMaxFeatureWidth || n_dimensions > 2 || head.shape.front() == 0 ||
      (n_dimensions == 2 && head.shape[0] != 1) || !c10::isFloatingType(head.dtype)) {
    throw data_error("{}: shape [{}] of {}, wanted one row of floating-point numbers",
                     file.string(), fmt::join(head.shape, ", "), c10::toString(head.dtype));
  }
  if (width != 0 && found != width) {
    throw data_error("{}: {} numbers, the files before have {}", file.string(), found, width);
  }
  return head;
}

void open_folder(const FeatureSource& source, Opened& out) {
  std::error_code error;
  for (fs::directory_iterator at(source.path, error), end; !error && at != end;
       at.increment(error)) {
    if (at->path().extension() == ".npy") {
      out.files.push_back(at->path());
    } else {
      ++out.ignored_files;
    }
  }
  if (error) throw data_error("cannot read {}: {}", source.path.string(), error.message());
  if (out.files.empty()) {
    throw data_error("{}: no .npy file, wanted one an item", source.path.string());
  }
  std::sort(out.files.begin(), out.files.end());
  for (const fs::path& file : out.files) {
    out.info.width = single_row(map_file(file), file, out.info.width).shape.back();
    add_id(out.info.ids, file.stem().string(), file.string());
  }
  out.info.n_rows = out.info.ids.size();
}

void open_amazon(const FeatureSource& source, Opened& out) {
  const std::string what = source.path.string();
  out.file = map_file(source.path);
  const std::string_view bytes = out.file.bytes;
  if (bytes.empty() || bytes.size() % kAmazonRecord != 0) {
    throw data_error("{}: {} bytes, wanted records of {} (10-byte id, 4096 float32); truncated?",
                     what, bytes.size(), kAmazonRecord);
  }
  out.info.width = kAmazonWidth;
  out.info.n_rows = static_cast<int64_t>(bytes.size() / kAmazonRecord);
  for (int64_t row = 0; row < out.info.n_rows; ++row) {
    add_id(out.info.ids, bytes.substr(static_cast<size_t>(row) * kAmazonRecord, kAmazonId),
           fmt::format("{}: record {}", what, row));
  }
}

void adopt_manifest(const FeatureSource& source, FeatureInfo& info) {
  const fs::path folder = source.path.parent_path();
  const Json manifest = read_manifest(folder.empty() ? fs::path(".") : folder);
  for (const auto& [name, entry] : manifest.items()) {
    if (entry["file"] != source.path.filename().string()) continue;
    if (entry.contains("sha256") && entry["sha256"] != sha256_of_file(source.path)) {
      throw data_error(
          "{}: not the file that features.json beside it describes (sha256); remove "
          "its entry there, or restore the file",
          source.path.string());
    }
    info.encoder = entry.value("encoder", Json());
    info.source = entry.value("source", Json());
    info.valid_for = entry.value("valid_for", Json());
  }
}

Opened open_source(const FeatureSource& source) {
  Opened out;
  out.info.dtype = "float32";
  out.info.has_ids = true;
  switch (source.kind) {
    case Kind::npy:
    case Kind::safetensors:
      out.array = source.kind == Kind::npy ? map_npy(source.path) : map_safetensors(source.path);
      out.info.n_rows = out.array.n_rows();
      out.info.width = out.array.width();
      out.info.dtype = dtype_name(out.array.dtype());
      out.info.has_ids = !source.ids_path.empty();
      if (out.info.has_ids) {
        out.info.ids = read_ids(source.ids_path, out.info.n_rows, source.path);
      }
      adopt_manifest(source, out.info);
      break;
    case Kind::table:
      open_table(source, out);
      break;
    case Kind::folder:
      open_folder(source, out);
      break;
    case Kind::amazon:
      open_amazon(source, out);
      break;
  }
  return out;
}

/// Takes the numbers of one row as float32 and, where they are kept as they are, their bytes.
using RowSink = std::function<void(const float* values, std::string_view bytes)>;

std::string_view bytes_of(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

void walk_rows(const FeatureSource& source, const Opened& opened, const RowSink& sink) {
  const int64_t width = opened.info.width;
  std::vector<float> values(static_cast<size_t>(width));
  switch (source.kind) {
    case Kind::npy:
    case Kind::safetensors: {
      const MappedArray& array = opened.array;
      const bool kept = array.dtype() != torch::kDouble;
      const auto row_bytes = static_cast<size_t>(width * array.item_size());
      for (int64_t row = 0; row < array.n_rows(); ++row) {
        array.read_row(row, values.data());
        sink(values.data(),
             kept ? array.bytes().substr(static_cast<size_t>(row) * row_bytes, row_bytes)
                  : bytes_of(values));
      }
      break;
    }
    case Kind::table:
      each_line(opened.file.bytes, [&](std::string_view line, int64_t number) {
        if (line.empty() || (number == 1 && opened.header)) return;
        std::string_view cells = split_line(line, opened.delimiter).cells;
        for (int64_t k = 0; k < width; ++k) {
          const std::string_view before = cells;
          if (!take_number(cells, opened.delimiter, values[static_cast<size_t>(k)])) {
            throw data_error("{}:{}: column {}: '{}' is no number", source.path.string(), number,
                             k + 2, printable(before.substr(0, before.find(opened.delimiter)), 20));
          }
        }
        sink(values.data(), bytes_of(values));
      });
      break;
    case Kind::folder:
      for (const fs::path& file : opened.files) {
        const MappedFile bytes = map_file(file);
        const NpyHeader head = single_row(bytes, file, width);
        floats_of(head.dtype, bytes.bytes.data() + head.data_offset, values.data(), width);
        sink(values.data(), bytes_of(values));
      }
      break;
    case Kind::amazon:
      for (int64_t row = 0; row < opened.info.n_rows; ++row) {
        std::memcpy(values.data(),
                    opened.file.bytes.data() + static_cast<size_t>(row) * kAmazonRecord + kAmazonId,
                    kAmazonWidth * sizeof(float));
        sink(values.data(), bytes_of(values));
      }
      break;
  }
}

/// Writes `<modality>_feat.npy` from a walk over its rows, checking every number, and `.ids`;
/// counts matches into `report` and returns the entry of features.json.
Json write_feature(const fs::path& folder, const std::string& modality, const std::string& what,
                   const FeatureInfo& info, torch::ScalarType dtype, const Vocabulary& item_ids,
                   Json& report, const std::function<void(const RowSink&)>& walk,
                   const std::function<bool()>& stop_requested) {
  const auto id_of = [&](int64_t row) {
    return info.has_ids ? std::string(info.ids[row]) : std::to_string(row);
  };
  int64_t matched = 0;
  for (int64_t row = 0; row < info.n_rows; ++row) matched += item_ids.find(id_of(row)) >= 0;
  if (matched == 0) {
    throw data_error("{}: none of its {} rows belongs to an item{}", what, info.n_rows,
                     info.n_rows == 0 || item_ids.size() == 0
                         ? ""
                         : fmt::format(" (its first id is '{}', the first item '{}')",
                                       printable(id_of(0), 20), printable(item_ids[0], 20)));
  }
  const std::string file = modality + "_feat.npy";
  const std::string ids_file = modality + "_feat.ids";
  Sha256 hash;
  write_file_with(
      folder / file,
      [&](std::ostream& out) {
        const auto put = [&](std::string_view bytes) {
          out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
          hash.add(bytes);
        };
        put(npy_head(dtype, {info.n_rows, info.width}));
        int64_t row = 0;
        walk([&](const float* values, std::string_view bytes) {
          const float* end = values + info.width;
          const float* bad = std::find_if(values, end, [](float v) { return !std::isfinite(v); });
          if (bad != end) {
            throw data_error(
                "{}: row {}, column {} (from 0; id '{}') is {}, wanted a finite number", what, row,
                bad - values, printable(id_of(row)),
                std::isnan(*bad) ? "NaN" : "infinite as float32");
          }
          put(bytes);
          ++row;
        });
      },
      stop_requested);
  Json entry = {{"file", file},
                {"ids", nullptr},
                {"rows", info.n_rows},
                {"width", info.width},
                {"dtype", dtype_name(dtype)},
                {"sha256", hash.hex()},
                {"encoder", info.encoder},
                {"source", info.source},
                {"valid_for", info.valid_for}};
  if (info.has_ids) {
    write_file_with(folder / ids_file, [&](std::ostream& out) {
      for (int64_t row = 0; row < info.n_rows; ++row) out << info.ids[row] << '\n';
    });
    entry["ids"] = ids_file;
    entry["ids_sha256"] = sha256_of_file(folder / ids_file);
  }
  report["rows"] = info.n_rows;
  report["width"] = info.width;
  report["dtype"] = dtype_name(dtype);
  report["matched"] = matched;
  report["missing"] = item_ids.size() - matched;
  report["unknown"] = info.n_rows - matched;
  return entry;
}

/// Exit 3 unless `entry` of features.json has the fields that open_feature reads.
void check_entry(const std::string& name, const Json& entry, const std::string& what) {
  const std::string where = fmt::format("{}: '{}'", what, printable(name));
  if (!is_modality(name)) {
    throw data_error("{}: wanted a lower-case word as the name of a modality", where);
  }
  if (!entry.is_object()) throw data_error("{}: wanted an object", where);
  const auto plain_file = [&](const char* key) {
    const fs::path file = entry[key].get<std::string>();
    return !file.empty() && file == file.filename() && file != "." && file != "..";
  };
  const auto text_or_null = [&](const char* key) {
    return !entry.contains(key) || entry[key].is_null() || entry[key].is_string();
  };
  if (!entry.contains("file") || !entry["file"].is_string() || !plain_file("file")) {
    throw data_error("{}: 'file' must name a file in the same folder", where);
  }
  if (!text_or_null("ids") ||
      (entry.contains("ids") && entry["ids"].is_string() && !plain_file("ids"))) {
    throw data_error("{}: 'ids' must name a file in the same folder, or be null", where);
  }
  for (const char* key : {"rows", "width"}) {
    if (!entry.contains(key) || !entry[key].is_number_integer()) {
      throw data_error("{}: '{}' must be a whole number", where, key);
    }
  }
  for (const char* key : {"dtype", "sha256", "ids_sha256"}) {
    if (entry.contains(key) && !entry[key].is_string()) {
      throw data_error("{}: '{}' must be text", where, key);
    }
  }
  for (const char* key : {"encoder", "source"}) {
    if (entry.contains(key) && !entry[key].is_null() && !entry[key].is_object()) {
      throw data_error("{}: '{}' must be an object or null", where, key);
    }
  }
  if (!text_or_null("valid_for")) throw data_error("{}: 'valid_for' must be text or null", where);
}

void require_hash(const fs::path& path, const Json& entry, const char* key) {
  if (!entry.contains(key)) return;
  const std::string found = sha256_of_file(path);
  if (entry[key] != found) {
    throw data_error("{}: its sha256 is {}, features.json says {}; import again or restore it",
                     path.string(), found, printable(entry[key].get<std::string>(), 64));
  }
}

/// The kind of a file by its name, else by its first bytes.
Kind kind_of(const fs::path& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) return Kind::folder;
  const std::string extension = lower(path.extension().string());
  if (extension == ".npy") return Kind::npy;
  if (extension == ".safetensors") return Kind::safetensors;
  if (extension == ".tsv" || extension == ".csv") return Kind::table;
  if (extension == ".b") return Kind::amazon;
  throw data_error(
      "{}: no feature file; wanted .npy, .safetensors, .tsv, .csv, .b (Amazon image "
      "features) or a folder of .npy files",
      path.string());
}

fs::path ids_beside(const fs::path& path, Kind kind) {
  if (kind != Kind::npy && kind != Kind::safetensors) return {};
  fs::path ids = path;
  ids.replace_extension(".ids");
  std::error_code error;
  return fs::exists(ids, error) ? ids : fs::path();
}

/// The modality in the name of a feature file or folder; empty for other files.
std::string modality_in_name(const fs::path& path, bool folder) {
  const std::string extension = lower(path.extension().string());
  const std::string name = path.filename().string();
  std::string stem = folder ? name : path.stem().string();
  if (extension == ".b" && stem.starts_with("image_features")) return "image";
  if (!stem.ends_with("_feat") || stem.size() == 5) return {};
  if (!folder && extension != ".npy" && extension != ".safetensors" && extension != ".tsv" &&
      extension != ".csv" && extension != ".b") {
    return {};
  }
  stem.resize(stem.size() - 5);
  if (!is_modality(lower(stem))) {
    throw data_error("{}: '{}' is no name of a modality; rename it to a word of a-z, 0-9 and _",
                     path.string(), printable(stem));
  }
  return canonical_modality(stem);
}

/// The text of a field of an entry's encoder, or an empty one.
std::string encoder_says(const Json& entry, const char* key) {
  if (!entry.is_object()) return {};
  const auto encoder = entry.find("encoder");
  if (encoder == entry.end() || !encoder->is_object()) return {};
  const auto value = encoder->find(key);
  return value != encoder->end() && value->is_string() ? value->get<std::string>() : std::string();
}

}  // namespace

std::string canonical_modality(std::string_view name) {
  const std::string word = lower(name);
  if (!is_modality(word)) {
    throw usage_error("'{}' is no name of a modality; wanted a word of a-z, 0-9 and _, like image",
                      printable(name));
  }
  if (word == "visual") return "image";
  if (word == "textual") return "text";
  if (word == "acoustic") return "audio";
  return word;
}

const char* dtype_name(torch::ScalarType dtype) {
  return dtype == torch::kHalf ? "float16" : dtype == torch::kFloat ? "float32" : "float64";
}

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::npy:
      return "npy";
    case Kind::safetensors:
      return "safetensors";
    case Kind::table:
      return "table";
    case Kind::folder:
      return "folder";
    case Kind::amazon:
      break;
  }
  return "amazon";
}

std::vector<FeatureSource> find_features(const fs::path& folder) {
  std::map<std::string, FeatureSource> found;
  for (const fs::path& place : {folder, folder / "features"}) {
    std::error_code error;
    if (!fs::is_directory(place, error)) continue;
    for (fs::directory_iterator at(place, error), end; !error && at != end; at.increment(error)) {
      const std::string modality = modality_in_name(at->path(), at->is_directory(error));
      if (modality.empty()) continue;
      const Kind kind = kind_of(at->path());
      const auto [before, added] = found.emplace(
          modality, FeatureSource{modality, at->path(), ids_beside(at->path(), kind), kind});
      if (!added) {
        const auto [first, second] =
            std::minmax({before->second.path.string(), at->path().string()});
        throw data_error("two files for {}: {} and {}; name one with `feature` {}=FILE", modality,
                         first, second, modality);
      }
    }
    if (error) throw data_error("cannot read {}: {}", place.string(), error.message());
  }
  std::vector<FeatureSource> out;
  for (auto& [modality, source] : found) out.push_back(std::move(source));
  return out;
}

FeatureSource parse_feature_argument(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals + 1 == text.size()) {
    throw usage_error("`feature` '{}': wanted MODALITY=FILE[,IDS], like image=image_feat.npy",
                      printable(text));
  }
  FeatureSource out;
  out.modality = canonical_modality(text.substr(0, equals));
  out.path = text.substr(equals + 1);
  std::error_code error;
  const size_t comma = text.rfind(',');
  const bool with_ids =
      !fs::exists(out.path, error) && comma != std::string::npos && comma > equals;
  if (with_ids) {
    out.ids_path = text.substr(comma + 1);
    out.path = text.substr(equals + 1, comma - equals - 1);
    if (out.ids_path.empty() || out.path.empty()) {
      throw usage_error("`feature` '{}': wanted MODALITY=FILE[,IDS]", printable(text));
    }
  }
  for (const fs::path& path : {out.path, out.ids_path}) {
    if (!path.empty() && !fs::exists(path, error)) {
      throw data_error("`feature` {}: no file {}", out.modality, path.string());
    }
  }
  out.kind = kind_of(out.path);
  if (!with_ids) {
    out.ids_path = ids_beside(out.path, out.kind);
  } else if (out.kind != Kind::npy && out.kind != Kind::safetensors) {
    throw usage_error("`feature` {}: {} names its rows itself; leave ',{}' away", out.modality,
                      out.path.string(), out.ids_path.string());
  }
  return out;
}

FeatureInfo describe_feature(const FeatureSource& source) { return open_source(source).info; }

Json import_feature(const FeatureSource& source, const fs::path& folder, const Vocabulary& item_ids,
                    bool dense, Json& report, const std::function<bool()>& stop_requested) {
  Opened opened = open_source(source);
  FeatureInfo& info = opened.info;
  const std::string what = source.path.string();
  if (!info.has_ids && !dense) {
    fs::path ids = source.path;
    throw data_error(
        "{}: {} rows without ids; give {} with one id a line, or `ids` dense if row r "
        "is item id r",
        what, info.n_rows, ids.replace_extension(".ids").string());
  }
  report = {{"file", what}, {"kind", kind_name(source.kind)}};
  if (info.source.is_null()) {
    info.source = {{"kind", kind_name(source.kind)}, {"file", source.path.filename().string()}};
  }
  const auto dtype = opened.array.dtype() == torch::kHalf ? torch::kHalf : torch::kFloat;
  Json entry = write_feature(
      folder, source.modality, what, info, dtype, item_ids, report,
      [&](const RowSink& sink) { walk_rows(source, opened, sink); }, stop_requested);
  report["ids"] = !info.has_ids              ? "row r is item id r"
                  : !source.ids_path.empty() ? source.ids_path.string()
                                             : "in the file";
  if (opened.ignored_files > 0) report["ignored_files"] = opened.ignored_files;
  return entry;
}

Json import_rows(const std::string& modality, const torch::Tensor& rows, const Vocabulary& row_ids,
                 const Json& about, const fs::path& folder, const Vocabulary& item_ids,
                 Json& report, const Json& encoder) {
  const MappedArray array(rows);
  const auto dtype = rows.scalar_type() == torch::kHalf ? torch::kHalf : torch::kFloat;
  TORCH_CHECK(array.n_rows() == row_ids.size(), "import_rows: one id a row");
  FeatureInfo info;
  info.n_rows = array.n_rows();
  info.width = array.width();
  info.has_ids = true;
  info.ids = row_ids;
  info.encoder = encoder;
  info.source = about;
  report = Json::object();
  const std::string what = modality + " features";
  const auto stored = rows.detach().to(torch::kCPU, dtype).contiguous();
  const auto* bytes = static_cast<const char*>(stored.const_data_ptr());
  const auto row_bytes = static_cast<size_t>(info.width) * stored.element_size();
  const auto walk = [&](const RowSink& sink) {
    std::vector<float> values(static_cast<size_t>(info.width));
    for (int64_t row = 0; row < info.n_rows; ++row) {
      array.read_row(row, values.data());
      sink(values.data(), {bytes + static_cast<size_t>(row) * row_bytes, row_bytes});
    }
  };
  return write_feature(folder, modality, what, info, dtype, item_ids, report, walk, {});
}

Json read_manifest(const fs::path& folder) {
  const fs::path path = folder / "features.json";
  std::error_code error;
  if (!fs::exists(path, error)) return Json::object();
  return parse_manifest(read_file(path), path.string());
}

Json parse_manifest(std::string_view text, const std::string& what) {
  Json manifest = parse_json(text, what);
  if (!manifest.is_object()) throw data_error("{}: wanted an object, one entry a modality", what);
  for (const auto& [name, entry] : manifest.items()) check_entry(name, entry, what);
  return manifest;
}

Feature open_feature(const fs::path& folder, const std::string& name, const Json& entry,
                     const Vocabulary& item_ids, bool verify) {
  check_entry(name, entry, (folder / "features.json").string());
  const fs::path path = folder / entry["file"].get<std::string>();
  Feature out;
  out.name = name;
  out.manifest = entry;
  out.rows = kind_of(path) == Kind::safetensors ? map_safetensors(path) : map_npy(path);
  const int64_t n_rows = out.rows.n_rows();
  if (entry["rows"] != n_rows || entry["width"] != out.width() ||
      (entry.contains("dtype") && entry["dtype"] != dtype_name(out.rows.dtype()))) {
    throw data_error("{}: {} x {} of {}, features.json says {} x {} of {}; import again",
                     path.string(), n_rows, out.width(), dtype_name(out.rows.dtype()),
                     entry["rows"].dump(), entry["width"].dump(),
                     printable(entry.value("dtype", std::string("any dtype")), 20));
  }
  if (verify) require_hash(path, entry, "sha256");
  out.row_of_item = torch::full({item_ids.size()}, -1, torch::kInt);
  auto* row_of = out.row_of_item.mutable_data_ptr<int32_t>();
  const auto match = [&](std::string_view id, int64_t row) {
    const int32_t item = item_ids.find(id);
    if (item >= 0) row_of[item] = static_cast<int32_t>(row);
  };
  if (entry.contains("ids") && entry["ids"].is_string()) {
    const fs::path ids_path = folder / entry["ids"].get<std::string>();
    if (verify) require_hash(ids_path, entry, "ids_sha256");
    const Vocabulary ids = read_ids(ids_path, n_rows, path);
    for (int64_t row = 0; row < n_rows; ++row) match(ids[row], row);
  } else {
    for (int64_t row = 0; row < n_rows; ++row) match(std::to_string(row), row);
  }
  return out;
}

void permute_feature(Feature& feature, const Random& random) {
  const torch::Tensor before = feature.row_of_item;
  feature.row_of_item = before.clone();
  auto* row_of = feature.row_of_item.mutable_data_ptr<int32_t>();
  std::vector<int32_t> rows;
  for (int64_t item = 0; item < feature.n_items(); ++item) {
    if (row_of[item] >= 0) rows.push_back(row_of[item]);
  }
  random.stream("permute/" + feature.name).shuffle(rows, 0);
  size_t next = 0;
  for (int64_t item = 0; item < feature.n_items(); ++item) {
    if (row_of[item] >= 0) row_of[item] = rows[next++];
  }
}

bool made_by_model(const Json& entry) {
  return encoder_says(entry, "made_by") == "model" ||
         wrote_without_made_by(encoder_says(entry, "name"));
}

std::string shown_modality(const Feature& feature) {
  const std::string of = encoder_says(feature.manifest, "modality");
  return of.empty() || !made_by_model(feature.manifest) ? feature.name : of;
}

}  // namespace tessera
