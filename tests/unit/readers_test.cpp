// Detection and reading of users' files. Expected values are worked by hand from the texts given;
// formats and words follow section 1 of the conventions and sections 1 and 2 of the protocol.
#include "tessera/read/readers.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/read/read_rows.h"

namespace tessera {
namespace {

/// A folder for one test, removed afterwards.
class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "tessera_readers_XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path_); }
  fs::path write(const std::string& name, const std::string& text) const {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << text;
    return path_ / name;
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

EventTable read(const std::vector<Detected>& files, const ReadOptions& options = {},
                Json* report = nullptr) {
  EventTable table;
  Json own;
  read_interactions(files, options, table, report ? *report : own);
  return table;
}
EventTable read_text(const std::string& name, const std::string& text,
                     const ReadOptions& options = {}, Json* report = nullptr) {
  return read({detect_bytes(name, text, options)}, options, report);
}
/// "u1 a" and so on: the rows as raw ids.
std::vector<std::string> pairs(const EventTable& table) {
  std::vector<std::string> out;
  for (int64_t r = 0; r < table.n_rows(); ++r) {
    out.push_back(std::string(table.users[table.user[r]]) + " " +
                  std::string(table.items[table.item[r]]));
  }
  return out;
}
using Strings = std::vector<std::string>;

/// The message and code of what `body` throws.
template <typename Body>
std::pair<std::string, int> error_of(const Body& body) {
  try {
    body();
  } catch (const InputError& e) {
    return {e.what(), static_cast<int>(e.code())};
  }
  return {"no error", 0};
}
void expect_error(const std::string& name, const std::string& text, const std::string& words,
                  int code = 3, const ReadOptions& options = {}) {
  const auto [message, found] = error_of([&] { read_text(name, text, options); });
  EXPECT_NE(message.find(words), std::string::npos) << message << "\nwanted: " << words;
  EXPECT_EQ(found, code) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(Delimited, EveryDelimiterWithAndWithoutHeader) {
  for (const std::string d : {"\t", ",", ";", "|", " ", "::"}) {
    for (const bool header : {false, true}) {
      std::string text;
      if (header) text = "userID" + d + "item_id" + d + "Rating" + d + "timestamp\n";
      text += "u1" + d + "a" + d + "4.5" + d + "881250949\n";
      text += "u2" + d + "b" + d + "3" + d + "881250950\n";
      text += "u1" + d + "b" + d + "1" + d + "881250951";
      const Detected found = detect_bytes("data.txt", text);
      EXPECT_EQ(found.delimiter, d);
      EXPECT_EQ(found.has_header, header) << d;
      EXPECT_EQ(found.time_unit, "s");
      ASSERT_EQ(found.rows.size(), 3u);
      EXPECT_EQ(found.rows[0], (Strings{"u1", "a", "4.5", "881250949"}));
      const EventTable table = read({found});
      EXPECT_EQ(pairs(table), (Strings{"u1 a", "u2 b", "u1 b"})) << d;
      EXPECT_EQ(table.rating, (std::vector<float>{4.5f, 3, 1}));
      EXPECT_EQ(table.time, (std::vector<int64_t>{881250949, 881250950, 881250951}));
      EXPECT_EQ(table.time_unit, "s");
      EXPECT_TRUE(table.split.empty());
      EXPECT_FALSE(table.keep_repeats);
    }
  }
}

TEST(Delimited, HeaderNamesByMeaning) {
  const Detected found = detect_bytes(
      "x.csv", "user_age,movie_id,split,USER ID,position,Event Type\n3,m1,train,7,0,click\n");
  EXPECT_EQ(found.column("user"), 3);  // "user_age" only begins like one
  EXPECT_EQ(found.column("item"), 1);
  EXPECT_EQ(found.column("split"), 2);
  EXPECT_EQ(found.column("position"), 4);
  EXPECT_EQ(found.column("event"), 5);
  EXPECT_EQ(found.notes, (Strings{"columns not used: user_age"}));
}

TEST(Delimited, FlagsChooseColumnsByNameAndNumber) {
  ReadOptions options;
  options.user_col = "who";
  options.item_col = "3";
  const EventTable table = read_text("x.csv", "n,who,what\n1,u,a\n2,v,b\n", options);
  EXPECT_EQ(pairs(table), (Strings{"u a", "v b"}));
  ReadOptions swapped;  // without header the flags move the default meanings aside
  swapped.user_col = "2";
  swapped.item_col = "1";
  EXPECT_EQ(pairs(read_text("x.tsv", "a\tu\t5\na\tv\t4\n", swapped)), (Strings{"u a", "v a"}));
}

TEST(Delimited, HeaderOrFirstRow) {
  const auto has_header = [](const std::string& text) {
    return detect_bytes("x.csv", text).has_header;
  };
  EXPECT_TRUE(has_header("user_id,movie_id\nu,a\n"));
  EXPECT_TRUE(has_header("user_id,item_id\nuser_1,item_1\n"));
  EXPECT_TRUE(has_header("user,book\nu,a\n"));
  EXPECT_TRUE(has_header("who,what,rating\nu,a,3\n"));
  EXPECT_FALSE(has_header("alice,book\nbob,tent\n"));  // a word that is an id
  EXPECT_FALSE(has_header("user_a,item_x\nuser_b,item_y\n"));
  EXPECT_FALSE(has_header("user1,item1\nuser2,item2\n"));
  EXPECT_FALSE(has_header("1,2,3\n4,5,6\n"));
}

TEST(Delimited, IdsStayTextAndEmptyLinesAreSkipped) {
  const EventTable table = read_text("x.tsv", "user\titem\n007\t1e3\n\n7\t1000\n\r\n");
  EXPECT_EQ(pairs(table), (Strings{"007 1e3", "7 1000"}));
}

TEST(Delimited, QuotedCellsOfCsv) {
  const EventTable table = read_text("x.csv", "user,item\n\"u,1\",\"say \"\"a\"\"\"\nu2,b\n");
  EXPECT_EQ(pairs(table), (Strings{"u,1 say \"a\"", "u2 b"}));
}

TEST(Delimited, Utf8MarkAndCrLf) {
  const EventTable table = read_text("x.csv", "\xef\xbb\xbfuser,item\r\nu1,a\r\nu2,b\r\n");
  EXPECT_EQ(pairs(table), (Strings{"u1 a", "u2 b"}));
}

TEST(Delimited, SplitLabelsKeepRepeats) {
  const EventTable table = read_text("x.tsv",
                                     "user\titem\tsplit\nu\ta\ttrain\nu\tb\tval\nu\tc\tvalidation\n"
                                     "u\td\tdev\nu\te\ttest\nu\tf\thistory\nu\tg\tseen\n");
  EXPECT_EQ(table.split, (std::vector<Split>{Split::train, Split::valid, Split::valid, Split::valid,
                                             Split::test, Split::history, Split::seen}));
  EXPECT_TRUE(table.keep_repeats);
}

TEST(Delimited, PositionIsTheOrder) {
  const EventTable table =
      read_text("x.tsv", "user\titem\ttimestamp\tposition\nu\ta\t99\t1\nu\tb\t98\t0\n");
  EXPECT_EQ(table.time, (std::vector<int64_t>{1, 0}));
  EXPECT_EQ(table.time_unit, "position");
}

TEST(Delimited, EventTypes) {
  const EventTable table =
      read_text("x.tsv", "user\titem\tevent\nu\ta\tclick\nu\tb\tview\nv\ta\tclick\n");
  EXPECT_EQ(table.event_types, (Strings{"click", "view"}));
  EXPECT_EQ(table.event, (std::vector<uint8_t>{0, 1, 0}));
}

TEST(Delimited, MoreRowsThanOneBlock) {
  std::string text = "user\titem\trating\n";  // over 4 MB, with a blank line and a bad one late
  for (int i = 0; i < 400000; ++i) {
    text += fmt::format("u{}\ti{}\t{}\n", i % 1000, i % 777, i % 5);
    if (i == 300000) text += "\n";
    if (i == 390000) text += "u1\ti1\n";
  }
  ReadOptions options;
  const auto [message, code] = error_of([&] { read_text("big.tsv", text, options); });
  // line 1 header, 390001 rows, one blank line: the short row is line 390004
  EXPECT_EQ(message, "big.tsv:390004:6: 2 columns, wanted 3; write one cell a column");
  EXPECT_EQ(code, 3);
  options.max_bad_lines = 1;
  Json report;
  const EventTable table = read_text("big.tsv", text, options, &report);
  EXPECT_EQ(table.n_rows(), 400000);
  EXPECT_EQ(report.at("bad_lines"), 1);
  EXPECT_EQ(report.at("bad_line_examples").size(), 1u);
}

TEST(Delimited, LineNumbersOfBadValuesCountSkippedLines) {
  ReadOptions options;
  options.max_bad_lines = 1;
  const auto [message, code] = error_of(
      [&] { read_text("x.tsv", "user\titem\trating\nu\ta\t1\n\nu\tb\nu\tc\tbad\n", options); });
  EXPECT_EQ(message,
            "x.tsv:5:5: rating 'bad' is not a number; write one like 4 or 3.5 (after 1 bad lines "
            "tolerated by `max_bad_lines`)");
  EXPECT_EQ(code, 3);
}

TEST(Times, SecondsMillisecondsIsoAndFractions) {
  EventTable table = read_text("x.csv", "user,item,time\nu,a,1262304000000\nu,b,1262304000001\n");
  EXPECT_EQ(table.time_unit, "ms");
  EXPECT_EQ(table.time[1], 1262304000001);
  // 2010-01-01T00:00:00Z is 1262304000; zone and date alone
  table = read_text("x.csv",
                    "user,item,time\nu,a,2010-01-01T00:00:00Z\nu,b,2010-01-01 01:00:00+01:00\n"
                    "u,c,2010-01-02\n");
  EXPECT_EQ(table.time_unit, "s");
  EXPECT_EQ(table.time, (std::vector<int64_t>{1262304000, 1262304000, 1262390400}));
  table =
      read_text("x.csv", "user,item,time\nu,a,2010-01-01T00:00:00Z\nu,b,2010-01-01T00:00:00.25Z\n");
  EXPECT_EQ(table.time_unit, "ms");
  EXPECT_EQ(table.time, (std::vector<int64_t>{1262304000000, 1262304000250}));
  table = read_text("x.csv", "user,item,time\nu,a,5\nu,b,5.5\nu,c,6.0\n");
  EXPECT_EQ(table.time_unit, "ms");
  EXPECT_EQ(table.time, (std::vector<int64_t>{5000, 5500, 6000}));
  EXPECT_EQ(detect_bytes("x.csv", "user,item,time\nu,a,2010-01-01\n").time_unit, "ISO 8601");
}

TEST(Times, FilesOfOtherUnitsAreUnited) {
  const EventTable table = read({detect_bytes("a.csv", "user,item,time\nu,a,1262304000\n"),
                                 detect_bytes("b.csv", "user,item,time\nu,b,1262304000001\n"),
                                 detect_bytes("c.csv", "user,item,time\nu,c,1262304002\n")});
  EXPECT_EQ(table.time_unit, "ms");
  EXPECT_EQ(table.time, (std::vector<int64_t>{1262304000000, 1262304000001, 1262304002000}));
}

TEST(Times, IsoRefusesWhatIsNoDate) {
  for (const char* text : {"2010-02-30", "2010-1-1", "2010-01-01T25:00", "2010-01-01T10:61:00",
                           "2010-01-01T10:00:00 CET", "2010-01-01T", ""}) {
    EXPECT_FALSE(parse_iso8601(text)) << text;
  }
  EXPECT_TRUE(parse_iso8601("0001-01-01T00:00:00Z"));  // Go's zero time, as Gorse writes it
}

TEST(Named, MovieLensAndMmrec) {
  EXPECT_EQ(detect_bytes("u.data", "1\t2\t3\t881250949\n").kind, "MovieLens u.data");
  EXPECT_EQ(detect_bytes("ratings.dat", "1::2::3::978300760\n").kind, "MovieLens ratings.dat");
  EXPECT_EQ(detect_bytes("ratings.csv", "userId,movieId,rating,timestamp\n1,2,3,4\n").kind,
            "MovieLens ratings.csv");
  const Detected mmrec =
      detect_bytes("baby.inter",
                   "userID\titemID\trating\ttimestamp\tx_label\n0\t5\t5.0\t9\t0\n"
                   "0\t6\t5.0\t10\t1\n0\t7\t5.0\t11\t2\n");
  EXPECT_EQ(mmrec.kind, "MMRec .inter");
  EXPECT_EQ(read({mmrec}).split, (std::vector<Split>{Split::train, Split::valid, Split::test}));
  EXPECT_EQ(detect_bytes("u.item", "1|Toy Story (1995)|01-Jan-1995\n").use, Use::refused);
}

TEST(RecBole, InterAndItem) {
  const Detected inter = detect_bytes(
      "x.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu\ta\t4\t88.0\n");
  EXPECT_EQ(inter.kind, "RecBole .inter");
  EXPECT_EQ(inter.names[0], "user_id");
  EXPECT_EQ(read({inter}).time, (std::vector<int64_t>{88}));
  const Detected item =
      detect_bytes("x.item",
                   "item_id:token\tmovie_title:token_seq\timage_feat:float_seq\tbag:float_seq\n"
                   "a\tToy \"Story\"\t0.5 1\t1 2\nb\tHeat\t\t1\nc\t\t2 3\t\n");
  EXPECT_EQ(item.kind, "RecBole .item");
  ItemTable items;
  Json report;
  read_items(item, {}, items, report);
  EXPECT_EQ(items.ids.ids(), (Strings{"a", "b", "c"}));
  EXPECT_EQ(items.columns, (Strings{"title", "bag"}));
  EXPECT_EQ(items.values[0], (Strings{"Toy \"Story\"", "Heat", ""}));
  EXPECT_EQ(items.values[1], (Strings{"1 2", "1", ""}));
  ASSERT_EQ(items.vectors.size(), 1u);
  EXPECT_EQ(items.vectors[0].modality, "image");
  EXPECT_EQ(items.vectors[0].width, 2);
  EXPECT_EQ(items.vectors[0].rows, (std::vector<float>{0.5f, 1, 2, 3}));
  EXPECT_EQ(items.vectors[0].item_rows, (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(detect_bytes("x.user", "user_id:token\tage:float\nu\t3\n").use, Use::users);
}

TEST(RecBole, BenchmarkFilesWithHistories) {
  const std::string header = "user_id:token\titem_id_list:token_seq\titem_id:token\n";
  Folder folder;  // u: a b c | d | e, once as one row a prefix; v only in train
  folder.write("x.train.inter", header + "u\ta\tb\nu\ta b\tc\nv\ta\tc\n");
  folder.write("x.valid.inter", header + "u\ta b c\td\n");
  folder.write("x.test.inter", header + "u\ta b c d\te\n");
  const auto sources = detect_sources({folder.path()});
  ASSERT_EQ(sources.size(), 3u);
  const EventTable table = read(sources);
  EXPECT_EQ(pairs(table), (Strings{"u a", "u b", "u c", "v a", "v c", "u d", "u e"}));
  EXPECT_EQ(table.time, (std::vector<int64_t>{0, 1, 2, 0, 1, 3, 4}));
  EXPECT_EQ(table.time_unit, "position");
  EXPECT_EQ(table.split[4], Split::train);
  EXPECT_EQ(table.split[5], Split::valid);
  EXPECT_EQ(table.split[6], Split::test);
}

TEST(RecBole, BenchmarkFilesWithoutHistories) {
  const std::string header = "user_id:token\titem_id:token\n";
  Folder folder;
  folder.write("x.train.inter", header + "u\ta\nu\tb\n");
  folder.write("x.valid.inter", header + "u\tc\n");
  folder.write("x.test.inter", header + "u\td\n");
  const EventTable table = read(detect_sources({folder.path()}));
  EXPECT_EQ(table.split,
            (std::vector<Split>{Split::train, Split::train, Split::valid, Split::test}));
}

TEST(JsonFamily, SplitsFromNames) {
  Folder folder;
  folder.write("train.json", "{\"0\": [1, 2], \"1\": [\"x\"],\n \"2\": []}");
  folder.write("val.json", "{\"0\": [3]}");
  folder.write("test.json", "{\"1\": [0]}");
  const auto sources = detect_sources({folder.path()});
  ASSERT_EQ(sources.size(), 3u);
  EXPECT_EQ(sources[0].kind, "JSON user -> items");
  EXPECT_EQ(sources[0].rows, (std::vector<Strings>{{"0", "1"}, {"0", "2"}, {"1", "x"}}));
  const EventTable table = read(sources);
  EXPECT_EQ(pairs(table), (Strings{"0 1", "0 2", "1 x", "0 3", "1 0"}));
  EXPECT_EQ(table.split, (std::vector<Split>{Split::train, Split::train, Split::train, Split::valid,
                                             Split::test}));
  EXPECT_TRUE(table.time.empty());
}

TEST(JsonFamily, SaysWhereItIsWrong) {
  expect_error("train.json", "{\"0\": [1,\n  true]}", "train.json:2:3: wanted a item id");
  expect_error("train.json", "{\"0\": [1", "train.json:1:9:");
  expect_error("train.json", "{\"0\": [\"a\\tb\"]}",
               "train.json:1:8: item id 'a\\tb' contains a tab");
  expect_error("train.json", "{\"0\": [1]} x", "wanted nothing after the object");
}

TEST(Sequences, OrderBecomesPosition) {
  const Detected found = detect_bytes("sequences.txt", "1 10 20 10\n2 30\n1 40\n");
  EXPECT_EQ(found.kind, "sequence text");
  EXPECT_EQ(found.rows[1], (Strings{"1", "20", "1"}));
  const EventTable table = read({found});
  EXPECT_EQ(pairs(table), (Strings{"1 10", "1 20", "1 10", "2 30", "1 40"}));
  EXPECT_EQ(table.time, (std::vector<int64_t>{0, 1, 2, 0, 3}));
  EXPECT_EQ(table.time_unit, "position");
  EXPECT_TRUE(table.keep_repeats);
  expect_error("sequences.txt", "1 10 20 30\n2\n3 10 2\n",
               "sequences.txt:2:2: user '2' without items");
}

TEST(Gorse, Feedback) {
  const std::string text =
      "{\"FeedbackType\":\"star\",\"UserId\":\"u\",\"ItemId\":\"a\",\"Value\":2,"
      "\"Timestamp\":\"2010-01-01T00:00:00Z\"}\n"
      "{\"FeedbackType\":\"read\",\"UserId\":\"v\",\"ItemId\":\"a\",\"Value\":0,"
      "\"Timestamp\":\"2010-01-01T00:00:01Z\"}\n";
  const Detected found = detect_bytes("feedback.jsonl", text);
  EXPECT_EQ(found.kind, "Gorse JSONL feedback");
  EXPECT_EQ(found.time_unit, "ISO 8601");
  const EventTable table = read({found});
  EXPECT_EQ(pairs(table), (Strings{"u a", "v a"}));
  EXPECT_EQ(table.event_types, (Strings{"star", "read"}));
  EXPECT_EQ(table.time, (std::vector<int64_t>{1262304000, 1262304001}));
  EXPECT_EQ(table.rating[0], 2);
  expect_error("feedback.jsonl",
               text +
                   "{\"FeedbackType\":\"x\",\"UserId\":\"\",\"ItemId\":\"a\","
                   "\"Timestamp\":\"2010-01-01\"}\n",
               "feedback.jsonl:3:21: empty user id");
  expect_error("feedback.jsonl", text + "{oops}\n", "feedback.jsonl:3:2: not valid JSON");
}

TEST(Gorse, ItemsWithLabels) {
  const std::string text =
      "{\"ItemId\":\"a\",\"IsHidden\":true,\"Categories\":[\"x\",\"y\"],"
      "\"Timestamp\":\"2010-01-01T00:00:00Z\",\"Labels\":{\"Image Feat\":[1,2.5],\"brand\":\"B\","
      "\"tags\":[\"p\",\"q\"]},\"Comment\":\"A\\tthing\"}\n"
      "{\"ItemId\":\"b\",\"Categories\":null,\"Labels\":{\"Image Feat\":[3,4]},\"Comment\":\"\"}\n"
      "{\"ItemId\":\"a\"}\n";
  const Detected found = detect_bytes("items.jsonl", text);
  EXPECT_EQ(found.kind, "Gorse JSONL items");
  ItemTable items;
  Json report;
  read_items(found, {}, items, report);
  const auto value = [&](const std::string& column, int row) -> std::string {
    for (size_t c = 0; c < items.columns.size(); ++c) {
      if (items.columns[c] == column) return items.values[c][row];
    }
    return "no column";
  };
  EXPECT_EQ(value("categories", 0), "x|y");
  EXPECT_EQ(value("is_hidden", 0), "1");
  EXPECT_EQ(value("is_hidden", 1), "");
  EXPECT_EQ(value("timestamp", 0), "2010-01-01T00:00:00Z");
  EXPECT_EQ(value("title", 0), "A thing");
  EXPECT_EQ(value("brand", 0), "B");
  EXPECT_EQ(value("tags", 0), "p|q");
  ASSERT_EQ(items.vectors.size(), 1u);
  EXPECT_EQ(items.vectors[0].modality, "image");
  EXPECT_EQ(items.vectors[0].rows, (std::vector<float>{1, 2.5f, 3, 4}));
  EXPECT_EQ(report.at("repeated"), 1);
  EXPECT_EQ(report.at("rows"), 2);
}

TEST(Gorse, Configuration) {
  const EventRoles roles = parse_gorse_config(
      "[server]\nhttp_port = 8088\n[recommend.data_source]\n# positive_feedback_types = [\"no\"]\n"
      "positive_feedback_types = [\"star\", 'like'] # both\nread_feedback_types=[\n  \"read\", # "
      "x\n"
      "  \"view\",\n]\n",
      "config.toml");
  EXPECT_EQ(roles.positive, (Strings{"star", "like"}));
  EXPECT_EQ(roles.read, (Strings{"read", "view"}));
  const auto [message, code] =
      error_of([] { parse_gorse_config("\nread_feedback_types = [read]", "config.toml"); });
  EXPECT_EQ(message.substr(0, 14), "config.toml:2:") << message;
  EXPECT_EQ(code, 3);
}

TEST(Catalogue, JsonLinesTextAndPictures) {
  Folder folder;
  const fs::path file = folder.write(
      "items.jsonl",
      "{\"movie_id\": 1, \"title\": \"Toy Story\", \"genres\": [\"A\", \"B\"]}\n"
      "{\"movie_id\": 2.5, \"title\": \"Caf\\u00e9\", \"plot\": null, \"year\": 1999}\n");
  folder.write("images/1.jpg", "x");
  folder.write("images/2.5.png", "x");
  folder.write("images/9.jpeg", "x");
  ReadOptions options;
  options.text = {"title", "genres"};
  options.images = folder.path() / "images";
  ItemTable items;
  Json report;
  read_items(detect(file), options, items, report);
  EXPECT_EQ(items.ids.ids(), (Strings{"1", "2.5"}));
  EXPECT_EQ(items.columns, (Strings{"title", "genres", "plot", "year"}));
  EXPECT_EQ(items.values[1], (Strings{"A|B", ""}));
  EXPECT_EQ(items.values[0][1], "Caf\xc3\xa9");
  ASSERT_EQ(items.media.size(), 2u);
  EXPECT_EQ(items.media[1].row, 1);
  EXPECT_EQ(fs::path(items.media[1].path).filename(), "2.5.png");
  EXPECT_EQ(report.at("media").at("of_no_item"), 1);
  options.text = {"titel"};
  const auto [message, code] = error_of([&] {
    ItemTable again;
    read_items(detect(file), options, again, report);
  });
  EXPECT_NE(message.find("did you mean 'title'"), std::string::npos) << message;
  EXPECT_EQ(code, 2);
}

TEST(Catalogue, CsvWithLineEndsInQuotes) {
  ReadOptions options;
  options.item_id_col = "sku";
  const Detected found =
      detect_bytes("things.csv", "sku,name,price\nA1,\"two\nlines\",3\nA2,b,4\n", options);
  EXPECT_EQ(found.use, Use::items);
  ItemTable items;
  Json report;
  read_items(found, options, items, report);
  EXPECT_EQ(items.columns, (Strings{"title", "price"}));
  EXPECT_EQ(items.values[0], (Strings{"two lines", "b"}));
}

TEST(Errors, OneLineWithPlaceAndRemedy) {
  expect_error("x.tsv", "", "x.tsv: empty file");
  expect_error("x.tsv", "\n\n", "x.tsv: empty file");
  expect_error("x.tsv", std::string("a\tb\n\0c\td\n", 9), "binary file");
  expect_error("x.txt", "u1-a\nu2-b\n", "only one column found (tried tab, comma");
  expect_error("x.tsv", "u\ta\t1\nu\tb\t2\nu\tc\nu\td\t4\nu\te\t4\n",
               "x.tsv:3:4: 2 columns, wanted 3");
  expect_error("x.tsv", "u\ta\t1\nu\tb\t2\nu\tc\t3\t9\nu\td\t4\nu\te\t4\n",
               "x.tsv:3:6: 4 columns, wanted 3");
  expect_error("x.tsv", "user\titem\nu\t\n", "x.tsv:2:3: empty item id; write one");
  expect_error("x.tsv", "user\titem\nu\t\xe9t\n", "x.tsv:2:3: item id '\\xe9t' is not UTF-8");
  expect_error("x.csv", "user,item\nu,\"a\tb\"\n", "x.csv:2:3: item id 'a\\tb' contains a tab");
  expect_error("x.tsv", "user\titem\ttime\nu\ta\tnoon\n", "x.tsv:2:5: time 'noon' is not one");
  expect_error("x.tsv", "user\titem\tsplit\nu\ta\thold\n", "x.tsv:2:5: split label 'hold'");
  expect_error("x.tsv", "user\titem\n", "no rows of user and item");
  ReadOptions options;
  options.user_col = "usr";
  expect_error("x.tsv", "user\titem\nu\ta\n", "(did you mean 'user'?)", 2, options);
  options.user_col = "3";
  expect_error("x.tsv", "user\titem\nu\ta\n", "has columns 1 to 2", 2, options);
  options.user_col = "2";
  expect_error("sequences.txt", "1 2 3\n2 3\n", "whose columns are fixed", 2, options);
  options = {};
  options.delimiter = "pipe";
  expect_error("x.tsv", "user\titem\nu\ta\n", "only one column found with the delimiter pipe", 3,
               options);
  options.delimiter = "tabb";
  expect_error("x.tsv", "user\titem\nu\ta\n", "(did you mean 'tab'?)", 2, options);
}

TEST(Catalogue, FlagsOfInteractionsAndItemsGoTogether) {
  Folder folder;
  const fs::path rows = folder.write("rows.csv", "who,what\nu,a\nv,b\n");
  const fs::path things = folder.write("things.csv", "code,title\na,A\nb,B\n");
  ReadOptions options;
  options.user_col = "who";
  options.item_col = "what";
  options.item_id_col = "code";
  const auto sources = detect_sources({rows, things}, options);
  ASSERT_EQ(sources.size(), 2u);
  EXPECT_EQ(pairs(read({sources[0]}, options)), (Strings{"u a", "v b"}));
  ItemTable items;
  Json report;
  read_items(sources[1], options, items, report);
  EXPECT_EQ(items.ids.ids(), (Strings{"a", "b"}));
  EXPECT_EQ(items.columns, (Strings{"title"}));
  options.user_col = "whom";
  const auto [message, code] = error_of([&] { detect_sources({rows}, options); });
  EXPECT_NE(message.find("did you mean 'who'"), std::string::npos) << message;
  EXPECT_EQ(code, 2);
}

TEST(Errors, MissingFileNamesTheNearest) {
  Folder folder;
  folder.write("interactions.tsv", "user\titem\nu\ta\n");
  const auto [message, code] = error_of([&] { detect(folder.path() / "interaction.tsv"); });
  EXPECT_NE(message.find("did you mean 'interactions.tsv'"), std::string::npos) << message;
  EXPECT_EQ(code, 3);
}

TEST(Errors, RefusedKindsSayHowToConvert) {
  Folder folder;
  const std::pair<std::string, std::string> files[] = {{"x.pkl", std::string("\x80\x04\x95", 3)},
                                                       {"x.pth", "PK\x03\x04"},
                                                       {"x.npz", "PK\x03\x04"},
                                                       {"x.db", "SQLite format 3"},
                                                       {"x.gz", "\x1f\x8b"},
                                                       {"x.txt", std::string("\x80\x02x", 3)}};
  for (const auto& [name, bytes] : files) {
    const fs::path path = folder.write(name, bytes);
    EXPECT_EQ(detect(path).use, Use::refused) << name;
    const auto [message, code] = error_of([&] { detect_sources({path}); });
    EXPECT_EQ(code, 3) << name;
    EXPECT_EQ(message.substr(0, path.string().size()), path.string());
    EXPECT_EQ(error_of([&] { inspect(path); }).first, message);
  }
}

TEST(Errors, FilesThatDoNotGoTogether) {
  const auto [message, code] = error_of([] {
    read({detect_bytes("a.tsv", "user\titem\ttime\nu\ta\t1\n"),
          detect_bytes("b.tsv", "user\titem\nu\tb\n")});
  });
  EXPECT_EQ(message,
            "b.tsv has no time column, but a.tsv has one; give both files the same columns");
  EXPECT_EQ(code, 3);
}

TEST(Folders, OneOfEach) {
  Folder folder;
  folder.write("feedback.jsonl", "{\"FeedbackType\":\"a\",\"UserId\":\"u\",\"ItemId\":\"i\"}\n");
  folder.write("items.jsonl", "{\"ItemId\":\"i\"}\n");
  folder.write("users.jsonl", "{\"UserId\":\"u\"}\n");
  folder.write("config.toml", "positive_feedback_types = [\"a\"]\n");
  folder.write("README.md", "hello\n");
  const auto sources = detect_sources({folder.path()});
  ASSERT_EQ(sources.size(), 4u);
  EXPECT_EQ(sources[0].use, Use::interactions);
  EXPECT_EQ(sources[1].use, Use::items);
  EXPECT_EQ(sources[2].use, Use::users);
  EXPECT_EQ(sources[3].use, Use::settings);
  Json report;
  EXPECT_EQ(count_users(sources[2], {}, report), 1);
  EXPECT_EQ(detect(folder.path()).notes, (Strings{"not read: README.md"}));
}

TEST(Inspect, ReportAndText) {
  Folder folder;
  const fs::path file = folder.write("u.data", "196\t242\t3\t881250949\n186\t302\t3\t891717742\n");
  const Json report = inspect(file);
  EXPECT_EQ(report.at("kind"), "MovieLens u.data");
  EXPECT_EQ(report.at("meaning").at("item"), "2");
  const std::string text = inspect_text(report);
  EXPECT_NE(text.find("delimiter: tab"), std::string::npos) << text;
  EXPECT_NE(text.find("meaning: user = column 1, item = column 2"), std::string::npos) << text;
  EXPECT_NE(text.find("time unit: seconds"), std::string::npos) << text;
  EXPECT_NE(text.find("196 | 242 | 3 | 881250949"), std::string::npos) << text;
  folder.write("run/status.json", "{\"state\":\"finished\"}");
  folder.write("run/results.json", "{\"model\":\"BM3\",\"test\":{\"recall@20\":0.5}}");
  const std::string run = inspect_text(inspect(folder.path() / "run"));
  EXPECT_NE(run.find("run folder"), std::string::npos);
  EXPECT_NE(run.find("model: BM3"), std::string::npos) << run;
}

fs::path real_data(const char* name) {
  const char* root = std::getenv("TESSERA_DATA");
  return fs::path(root ? root : "data") / name;
}

// Counts: the README of the data and section 9 of the protocol.
TEST(RealData, Counts) {
  struct Case {
    const char* file;
    const char* kind;
    int64_t users, items, rows;
    const char* unit;
  };
  const Case cases[] = {
      {"ml-100k/u.data", "MovieLens u.data", 943, 1682, 100000, "s"},
      {"ml-1m/interactions.tsv", "delimited text", 6040, 3706, 1000209, "position"},
      {"amazon-baby/interactions.tsv", "delimited text", 19445, 7050, 160792, ""},
      {"amazon-toys/sequences.txt", "sequence text", 19412, 11924, 167597, "position"}};
  for (const auto& c : cases) {
    if (!fs::exists(real_data(c.file))) {
      GTEST_SKIP() << "no " << real_data(c.file) << ": set TESSERA_DATA to the folder of real data";
    }
    const Detected found = detect(real_data(c.file));
    EXPECT_EQ(found.kind, c.kind);
    const EventTable table = read({found});
    EXPECT_EQ(table.users.size(), c.users) << c.file;
    EXPECT_EQ(table.items.size(), c.items) << c.file;
    EXPECT_EQ(table.n_rows(), c.rows) << c.file;
    EXPECT_EQ(table.time_unit, c.unit) << c.file;
  }
}

TEST(RealData, Catalogue) {
  const fs::path folder = real_data("ml-100k");
  if (!fs::exists(folder)) {
    GTEST_SKIP() << "no " << folder << ": set TESSERA_DATA to the folder of real data";
  }
  const auto sources = detect_sources({folder});
  ASSERT_GE(sources.size(), 2u);
  ItemTable items;
  Json report;
  read_items(sources[1], {}, items, report);
  EXPECT_EQ(items.ids.size(), 1682);
  EXPECT_EQ(items.media.size(), 1663u);
}

}  // namespace
}  // namespace tessera
