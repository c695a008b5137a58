// Parquet through Arrow: the files are written here by Arrow's own writer.
#include <arrow/api.h>
#include <arrow/io/api.h>
#include <gtest/gtest.h>
#include <parquet/arrow/writer.h>

#include "tessera/base/error.h"
#include "tessera/read/readers.h"

namespace tessera {
namespace {

std::shared_ptr<arrow::Array> strings(const std::vector<std::string>& values) {
  arrow::StringBuilder builder;
  EXPECT_TRUE(builder.AppendValues(values).ok());
  return *builder.Finish();
}

std::string events() {
  arrow::Int64Builder items;
  EXPECT_TRUE(items.AppendValues({7, 8, 7}).ok());
  arrow::DoubleBuilder ratings;
  EXPECT_TRUE(ratings.AppendValues({4.5, 3.0, 1.0}).ok());
  arrow::TimestampBuilder times(arrow::timestamp(arrow::TimeUnit::MICRO),
                                arrow::default_memory_pool());
  // 2010-01-01T00:00:00Z and one second and 250 ms later
  EXPECT_TRUE(times.AppendValues({1262304000000000, 1262304000000000, 1262304001250000}).ok());
  const auto table = arrow::Table::Make(
      arrow::schema({arrow::field("user_id", arrow::utf8()),
                     arrow::field("item_id", arrow::int64()),
                     arrow::field("rating", arrow::float64()),
                     arrow::field("timestamp", arrow::timestamp(arrow::TimeUnit::MICRO))}),
      {strings({"u", "v", "v"}), *items.Finish(), *ratings.Finish(), *times.Finish()});
  auto out = *arrow::io::BufferOutputStream::Create();
  EXPECT_TRUE(parquet::arrow::WriteTable(*table, arrow::default_memory_pool(), out, 2).ok());
  return (*out->Finish())->ToString();
}

TEST(Parquet, RowsOfSeveralGroups) {
  const Detected found = detect_bytes("x.parquet", events());
  EXPECT_EQ(found.kind, "Parquet");
  EXPECT_EQ(found.use, Use::interactions);
  EXPECT_EQ(found.time_unit, "ISO 8601");
  EXPECT_EQ(found.rows[0], (std::vector<std::string>{"u", "7", "4.5", "2010-01-01T00:00:00"}));
  EventTable table;
  Json report;
  read_interactions({found}, {}, table, report);
  ASSERT_EQ(table.n_rows(), 3);
  EXPECT_EQ(table.items[table.item[1]], "8");
  EXPECT_EQ(table.rating, (std::vector<float>{4.5f, 3, 1}));
  EXPECT_EQ(table.time_unit, "ms");
  EXPECT_EQ(table.time, (std::vector<int64_t>{1262304000000, 1262304000000, 1262304001250}));
}

TEST(Parquet, DamagedAtAnyByteIsAnInputError) {
  const std::string whole = events();
  int refused = 0;
  for (size_t cut = 4; cut < whole.size(); cut += 37) {
    try {
      EventTable table;
      Json report;
      read_interactions({detect_bytes("x.parquet", whole.substr(0, cut))}, {}, table, report);
    } catch (const InputError& e) {
      EXPECT_NE(std::string(e.what()).find("damaged Parquet"), std::string::npos) << e.what();
      ++refused;
    }
  }
  EXPECT_EQ(refused, static_cast<int>((whole.size() - 5) / 37 + 1));
  for (size_t at = 0; at < whole.size(); at += 11) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x55);
    try {
      EventTable table;
      Json report;
      read_interactions({detect_bytes("x.parquet", damaged)}, {}, table, report);
    } catch (const InputError& e) {
      EXPECT_EQ(e.code(), Exit::data) << e.what();
    }
  }
}

TEST(Parquet, Catalogue) {
  const auto table = arrow::Table::Make(
      arrow::schema({arrow::field("item_id", arrow::utf8()), arrow::field("title", arrow::utf8())}),
      {strings({"a", "b"}), strings({"A", "B"})});
  auto out = *arrow::io::BufferOutputStream::Create();
  ASSERT_TRUE(parquet::arrow::WriteTable(*table, arrow::default_memory_pool(), out, 10).ok());
  ItemTable items;
  Json report;
  read_items(detect_bytes("items.parquet", (*out->Finish())->ToString()), {}, items, report);
  EXPECT_EQ(items.ids.ids(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(items.values[0], (std::vector<std::string>{"A", "B"}));
}

}  // namespace
}  // namespace tessera
