#include <arrow/api.h>
#include <arrow/csv/api.h>
#include <arrow/io/api.h>
#include <arrow/util/decimal.h>
#include <parquet/arrow/reader.h>
#include <parquet/exception.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <fstream>
#include <sstream>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/read/read_rows.h"

namespace tessera {
namespace {

constexpr int32_t kBlock = 1 << 22;

/// The words of a status without what is behind the first line.
std::string words(const arrow::Status& status) { return printable(status.message(), 160); }

std::shared_ptr<arrow::io::RandomAccessFile> open_arrow(const Detected& file) {
  if (file.bytes) {
    return std::make_shared<arrow::io::BufferReader>(
        std::make_shared<arrow::Buffer>(std::string_view(*file.bytes)));
  }
  auto opened = arrow::io::ReadableFile::Open(file.path.string());
  if (!opened.ok()) throw data_error("no file {}: {}", file.path.string(), words(opened.status()));
  return *opened;
}

/// Allocations of one reader, limited: a damaged file may claim any size.
struct LimitedPool {
  explicit LimitedPool(int64_t file_size)
      : pool(arrow::default_memory_pool(), (int64_t{256} << 20) + 64 * file_size) {}
  arrow::CappedMemoryPool pool;
};

/// Row numbers that were skipped and not yet passed, as ranges: they shift the numbers of the rows
/// that Arrow hands out.
class SkippedRows {
 public:
  void add(int64_t row) {
    if (!ranges_.empty() && ranges_.back().second + 1 == row) {
      ranges_.back().second = row;
    } else {
      ranges_.emplace_back(row, row);
    }
  }
  /// The first number from `row` on that was not skipped; earlier ranges are forgotten.
  int64_t next(int64_t row) {
    while (!ranges_.empty() && ranges_.front().first <= row) {
      row = std::max(row, ranges_.front().second + 1);
      ranges_.pop_front();
    }
    return row;
  }

 private:
  std::deque<std::pair<int64_t, int64_t>> ranges_;
};

bool blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

std::string ragged(size_t wanted, size_t found) {
  return fmt::format("{} columns, wanted {}; write one cell a column", found, wanted);
}

/// The byte (from 1) at which cell `cell` starts.
int64_t byte_of(std::span<const std::string_view> cells, int cell, size_t delimiter) {
  size_t at = 1;
  for (int c = 0; c < cell && c < static_cast<int>(cells.size()); ++c) {
    at += cells[c].size() + delimiter;
  }
  return static_cast<int64_t>(at);
}

void read_with_arrow(const Detected& file, BadLines& bad, const UseRow& use) {
  const std::string name = file.path.string();
  const int64_t n_columns = static_cast<int64_t>(file.names.size());
  auto read = arrow::csv::ReadOptions::Defaults();
  read.use_threads = false;  // row numbers are known only then
  read.block_size = static_cast<int32_t>(std::clamp<int64_t>(size_of(file) + 1, 4096, kBlock));
  read.skip_rows = static_cast<int32_t>(file.first_line + (file.has_header ? 1 : 0));
  for (int64_t c = 0; c < n_columns; ++c) read.column_names.push_back(std::to_string(c));
  auto parse = arrow::csv::ParseOptions::Defaults();
  parse.delimiter = file.delimiter.front();
  parse.quoting = parse.delimiter == ',' || parse.delimiter == ';';
  parse.newlines_in_values = parse.quoting && file.use == Use::items;
  parse.ignore_empty_lines = false;  // they count as rows, so that numbers are those of lines
  SkippedRows skipped;
  std::exception_ptr failure;
  parse.invalid_row_handler = [&](const arrow::csv::InvalidRow& row) {
    skipped.add(row.number);
    if (blank(row.text)) {
      ++bad.blank;
      return arrow::csv::InvalidRowResult::Skip;
    }
    try {
      int64_t column = static_cast<int64_t>(row.text.size()) + 1;
      if (row.actual_columns > row.expected_columns) {
        size_t at = 0;
        for (int32_t c = 0; c < row.expected_columns && at != std::string_view::npos; ++c) {
          at = row.text.find(parse.delimiter, at + (c > 0 ? 1 : 0));
        }
        if (at != std::string_view::npos) column = static_cast<int64_t>(at) + 1;
      }
      bad.add(name, row.number, column, ragged(row.expected_columns, row.actual_columns));
    } catch (...) {
      failure = std::current_exception();
      return arrow::csv::InvalidRowResult::Error;
    }
    return arrow::csv::InvalidRowResult::Skip;
  };
  auto convert = arrow::csv::ConvertOptions::Defaults();
  convert.check_utf8 = false;  // ids and texts are checked where the place is known
  convert.strings_can_be_null = false;
  convert.quoted_strings_can_be_null = false;
  for (const auto& column : read.column_names) convert.column_types[column] = arrow::binary();

  int64_t line = read.skip_rows + 1;
  const auto check = [&](const arrow::Status& status) {
    if (failure) std::rethrow_exception(failure);
    if (status.ok()) return;
    if (status.message().find("straddling") != std::string::npos) {
      throw data_error(
          "{}:{}: a line longer than {} MB, or a quote that is never closed; write one "
          "row a line",
          name, line, kBlock >> 20);
    }
    if (status.message().find("Empty CSV file") != std::string::npos) return;
    throw data_error("{}:{}: {}; close every quote and write one row a line", name, line,
                     words(status));
  };
  auto made = arrow::csv::StreamingReader::Make(arrow::io::default_io_context(), open_arrow(file),
                                                read, parse, convert);
  check(made.status());
  if (!made.ok()) return;
  std::vector<std::string_view> cells(n_columns);
  std::vector<const arrow::BinaryArray*> columns(n_columns);
  for (;;) {
    std::shared_ptr<arrow::RecordBatch> batch;
    check((*made)->ReadNext(&batch));
    if (!batch) return;
    for (int64_t c = 0; c < n_columns; ++c) {
      columns[c] = static_cast<const arrow::BinaryArray*>(batch->column(static_cast<int>(c)).get());
    }
    for (int64_t r = 0; r < batch->num_rows(); ++r) {
      bad.look();
      line = skipped.next(line);
      int64_t ends = 0;
      for (int64_t c = 0; c < n_columns; ++c) cells[c] = columns[c]->GetView(r);
      if (parse.newlines_in_values) {
        for (const auto& cell : cells) ends += std::count(cell.begin(), cell.end(), '\n');
      }
      if (std::all_of(cells.begin(), cells.end(), [](auto cell) { return cell.empty(); })) {
        ++bad.blank;  // Arrow fills an empty line up with empty cells
      } else if (const auto problem = use(cells)) {
        bad.add(name, line, byte_of(cells, problem->cell, 1), problem->reason);
      }
      line += 1 + ends;
    }
  }
}

void read_split_lines(const Detected& file, BadLines& bad, const UseRow& use) {
  const std::string name = file.path.string();
  const size_t n_columns = file.names.size();
  const int64_t first = file.first_line + (file.has_header ? 1 : 0);
  std::vector<std::string> storage;
  std::vector<std::string_view> cells;
  for_each_line(file, bad, [&](std::string_view line, int64_t number) {
    if (number <= first) return;
    if (blank(line)) {
      ++bad.blank;
      return;
    }
    split_cells(line, file.delimiter, storage);
    cells.assign(storage.begin(), storage.end());
    if (cells.size() != n_columns) {
      const bool more = cells.size() > n_columns;
      bad.add(name, number,
              more ? byte_of(cells, static_cast<int>(n_columns), file.delimiter.size())
                   : static_cast<int64_t>(line.size()) + 1,
              ragged(n_columns, cells.size()));
      return;
    }
    const auto problem = use(cells);
    if (problem) {
      bad.add(name, number, byte_of(cells, problem->cell, file.delimiter.size()), problem->reason);
    }
  });
}

/// One cell as the text that a delimited file would hold; empty for null. False for nested types.
bool cell_text(const arrow::Array& array, int64_t row, std::string& text) {
  text.clear();
  if (array.IsNull(row)) return true;
  const auto number = [&](auto* typed) { text = fmt::format("{}", typed->Value(row)); };
  switch (array.type_id()) {
    case arrow::Type::STRING:
    case arrow::Type::BINARY:
      text = static_cast<const arrow::BinaryArray&>(array).GetView(row);
      return true;
    case arrow::Type::LARGE_STRING:
    case arrow::Type::LARGE_BINARY:
      text = static_cast<const arrow::LargeBinaryArray&>(array).GetView(row);
      return true;
    case arrow::Type::STRING_VIEW:
    case arrow::Type::BINARY_VIEW:
      text = static_cast<const arrow::BinaryViewArray&>(array).GetView(row);
      return true;
    case arrow::Type::INT8:
      number(static_cast<const arrow::Int8Array*>(&array));
      return true;
    case arrow::Type::INT16:
      number(static_cast<const arrow::Int16Array*>(&array));
      return true;
    case arrow::Type::INT32:
      number(static_cast<const arrow::Int32Array*>(&array));
      return true;
    case arrow::Type::INT64:
      number(static_cast<const arrow::Int64Array*>(&array));
      return true;
    case arrow::Type::UINT8:
      number(static_cast<const arrow::UInt8Array*>(&array));
      return true;
    case arrow::Type::UINT16:
      number(static_cast<const arrow::UInt16Array*>(&array));
      return true;
    case arrow::Type::UINT32:
      number(static_cast<const arrow::UInt32Array*>(&array));
      return true;
    case arrow::Type::UINT64:
      number(static_cast<const arrow::UInt64Array*>(&array));
      return true;
    case arrow::Type::FLOAT:
      number(static_cast<const arrow::FloatArray*>(&array));
      return true;
    case arrow::Type::DOUBLE:
      number(static_cast<const arrow::DoubleArray*>(&array));
      return true;
    case arrow::Type::BOOL:
      text = static_cast<const arrow::BooleanArray&>(array).Value(row) ? "1" : "0";
      return true;
    case arrow::Type::TIMESTAMP: {
      // As milliseconds, in ISO 8601, so that the unit of the column needs no guess.
      const int64_t value = static_cast<const arrow::TimestampArray&>(array).Value(row);
      int64_t per_second = 1;
      switch (static_cast<const arrow::TimestampType&>(*array.type()).unit()) {
        case arrow::TimeUnit::SECOND:
          per_second = 1;
          break;
        case arrow::TimeUnit::MILLI:
          per_second = 1'000;
          break;
        case arrow::TimeUnit::MICRO:
          per_second = 1'000'000;
          break;
        case arrow::TimeUnit::NANO:
          per_second = 1'000'000'000;
          break;
      }
      int64_t seconds = value / per_second, rest = value % per_second;
      if (rest < 0) {
        rest += per_second;
        --seconds;
      }
      constexpr int64_t kFirst = -62'135'596'800, kLast = 253'402'300'799;  // years 1 to 9999
      if (seconds < kFirst || seconds > kLast) {
        text = "out of range";
        return true;
      }
      namespace chr = std::chrono;
      const chr::sys_seconds at{chr::seconds(seconds)};
      const auto day = chr::floor<chr::days>(at);
      const chr::year_month_day date(day);
      const chr::hh_mm_ss clock(at - day);
      text = fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}", static_cast<int>(date.year()),
                         static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()),
                         clock.hours().count(), clock.minutes().count(), clock.seconds().count());
      const int64_t milliseconds = rest * 1000 / per_second;
      if (milliseconds > 0) text += fmt::format(".{:03}", milliseconds);
      return true;
    }
    case arrow::Type::DICTIONARY: {
      const auto& dictionary = static_cast<const arrow::DictionaryArray&>(array);
      const int64_t index = dictionary.GetValueIndex(row);
      if (index < 0 || index >= dictionary.dictionary()->length()) return false;
      return cell_text(*dictionary.dictionary(), index, text);
    }
    case arrow::Type::LIST: {
      const auto& list = static_cast<const arrow::ListArray&>(array);
      std::string part, all;
      for (int64_t i = list.value_offset(row); i < list.value_offset(row + 1); ++i) {
        if (!cell_text(*list.values(), i, part)) return false;
        if (i > list.value_offset(row)) all += '|';
        all += part;
      }
      text = std::move(all);
      return true;
    }
    default: {
      auto scalar = array.GetScalar(row);
      if (!scalar.ok()) return false;
      text = (*scalar)->ToString();
      return true;
    }
  }
}

/// Runs `body` on an open Parquet file; every way in which a damaged one fails is exit 3.
template <typename Body>
void with_parquet(const Detected& file, const Body& body) {
  const std::string name = file.path.string();
  LimitedPool limited(size_of(file));
  const auto damaged = [&](const std::string& why) {
    return data_error("{}: damaged Parquet file ({}); write it again, or convert it to .tsv", name,
                      printable(why, 160));
  };
  const auto check = [&](const arrow::Status& status) {
    if (!status.ok()) throw damaged(words(status));
  };
  try {
    parquet::ReaderProperties properties(&limited.pool);
    properties.enable_buffered_stream();
    parquet::ArrowReaderProperties arrow_properties(false);
    arrow_properties.set_batch_size(16384);
    arrow_properties.set_pre_buffer(false);
    parquet::arrow::FileReaderBuilder builder;
    check(builder.Open(open_arrow(file), properties));
    builder.memory_pool(&limited.pool)->properties(arrow_properties);
    auto reader = builder.Build();
    check(reader.status());
    body(**reader, check);
  } catch (const InputError&) {
    throw;
  } catch (const RunError&) {
    throw;
  } catch (const std::exception& e) {
    throw damaged(e.what());
  }
}

void read_parquet(const Detected& file, BadLines& bad, const UseRow& use) {
  with_parquet(file, [&](parquet::arrow::FileReader& reader, const auto& check) {
    auto made = reader.GetRecordBatchReader();
    check(made.status());
    const size_t n_columns = file.names.size();
    std::vector<std::string> storage(n_columns);
    std::vector<std::string_view> cells(n_columns);
    int64_t row = 0;
    for (;;) {
      std::shared_ptr<arrow::RecordBatch> batch;
      check((*made)->ReadNext(&batch));
      if (!batch) return;
      check(batch->ValidateFull());
      if (batch->num_columns() != static_cast<int>(n_columns)) {
        throw data_error("{}: damaged Parquet file (columns change)", file.path.string());
      }
      for (int64_t r = 0; r < batch->num_rows(); ++r) {
        ++row;
        bad.look();
        for (size_t c = 0; c < n_columns; ++c) {
          if (!cell_text(*batch->column(static_cast<int>(c)), r, storage[c])) {
            throw data_error(
                "{}: column '{}' has type {}, which is not read; write text or numbers",
                file.path.string(), printable(file.names[c]),
                printable(batch->column(static_cast<int>(c))->type()->ToString()));
          }
          cells[c] = storage[c];
        }
        const auto problem = use(cells);
        if (problem) bad.add(file.path.string(), row, problem->cell + 1, problem->reason);
      }
    }
  });
}

}  // namespace

std::unique_ptr<std::istream> open_stream(const Detected& file) {
  if (file.bytes) return std::make_unique<std::istringstream>(*file.bytes);
  auto in = std::make_unique<std::ifstream>(file.path, std::ios::binary);
  if (!*in) throw data_error("no file {}: {}", file.path.string(), std::strerror(errno));
  return in;
}

int64_t size_of(const Detected& file) {
  if (file.bytes) return static_cast<int64_t>(file.bytes->size());
  std::error_code error;
  const auto size = fs::file_size(file.path, error);
  return error ? 0 : static_cast<int64_t>(size);
}

void for_each_line(const Detected& file, BadLines& bad,
                   const std::function<void(std::string_view line, int64_t number)>& use) {
  const auto in = open_stream(file);
  std::string line;
  int64_t number = 0;
  while (std::getline(*in, line)) {
    bad.look();
    std::string_view view = line;
    if (++number == 1 && view.starts_with("\xef\xbb\xbf")) view.remove_prefix(3);
    if (view.ends_with('\r')) view.remove_suffix(1);
    use(view, number);
  }
  if (in->bad()) throw data_error("cannot read {} to its end", file.path.string());
}

void split_cells(std::string_view line, std::string_view delimiter,
                 std::vector<std::string>& storage) {
  storage.clear();
  if (delimiter == " ") {
    size_t at = 0;
    while ((at = line.find_first_not_of(" \t", at)) != std::string_view::npos) {
      const size_t end = std::min(line.find_first_of(" \t", at), line.size());
      storage.emplace_back(line.substr(at, end - at));
      at = end;
    }
    return;
  }
  const bool quoting = delimiter == "," || delimiter == ";";
  size_t at = 0;
  for (;;) {
    std::string cell;
    if (quoting && at < line.size() && line[at] == '"') {
      for (++at; at < line.size(); ++at) {
        if (line[at] != '"') {
          cell += line[at];
        } else if (at + 1 < line.size() && line[at + 1] == '"') {
          cell += line[at++];
        } else {
          ++at;
          break;
        }
      }
    }
    const size_t end = std::min(line.find(delimiter, at), line.size());
    cell += line.substr(std::min(at, line.size()), end - std::min(at, end));
    storage.push_back(std::move(cell));
    if (end >= line.size()) return;
    at = end + delimiter.size();
  }
}

void for_each_row(const Detected& file, BadLines& bad, const UseRow& use) {
  if (file.kind.starts_with("Parquet")) {
    read_parquet(file, bad, use);
  } else if (file.delimiter == "::" || file.delimiter == " ") {
    read_split_lines(file, bad, use);
  } else {
    read_with_arrow(file, bad, use);
  }
}

ParquetHead parquet_head(const Detected& file, int64_t rows) {
  ParquetHead head;
  with_parquet(file, [&](parquet::arrow::FileReader& reader, const auto& check) {
    std::shared_ptr<arrow::Schema> schema;
    check(reader.GetSchema(&schema));
    for (const auto& field : schema->fields()) head.names.push_back(field->name());
    head.n_rows = reader.parquet_reader()->metadata()->num_rows();
    if (rows <= 0) return;
    auto made = reader.GetRecordBatchReader();
    check(made.status());
    std::shared_ptr<arrow::RecordBatch> batch;
    check((*made)->ReadNext(&batch));
    if (!batch) return;
    check(batch->ValidateFull());
    for (int64_t r = 0; r < std::min(rows, batch->num_rows()); ++r) {
      head.rows.emplace_back(batch->num_columns());
      for (int c = 0; c < batch->num_columns(); ++c) {
        cell_text(*batch->column(c), r, head.rows.back()[c]);
      }
    }
  });
  return head;
}

}  // namespace tessera
