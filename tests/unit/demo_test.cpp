#include "tessera/study/demo.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <map>
#include <set>
#include <sstream>
#include <string>

#include "tessera/base/files.h"
#include "tessera/data/npy.h"

namespace tessera {
namespace {

class DemoShop : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = fs::temp_directory_path() / fmt::format("tessera-demo-test-{}", getpid());
    fs::create_directories(folder_);
    make_shop(folder_ / "shop", 999);
  }
  static void TearDownTestSuite() { fs::remove_all(folder_); }

  static std::map<std::string, std::string> hashes(const fs::path& folder) {
    std::map<std::string, std::string> found;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (entry.is_regular_file()) {
        found[fs::relative(entry.path(), folder)] = sha256_of_file(entry.path());
      }
    }
    return found;
  }

  struct Row {
    std::string user, item;
    int64_t time;
  };
  static std::vector<Row> events() {
    std::istringstream in(read_file(folder_ / "shop" / "events.tsv"));
    std::string header;
    std::getline(in, header);
    EXPECT_EQ(header, "user_id\titem_id\ttimestamp");
    std::vector<Row> rows;
    for (Row row; in >> row.user >> row.item >> row.time;) rows.push_back(row);
    return rows;
  }
  static std::vector<Json> items() {
    std::istringstream in(read_file(folder_ / "shop" / "items.jsonl"));
    std::vector<Json> rows;
    for (std::string line; std::getline(in, line);) rows.push_back(parse_json(line, "items.jsonl"));
    return rows;
  }

  static fs::path folder_;
};
fs::path DemoShop::folder_;

TEST_F(DemoShop, SameSeedSameBytes) {
  make_shop(folder_ / "again", 999);
  make_shop(folder_ / "other", 1000);
  const auto first = hashes(folder_ / "shop");
  EXPECT_GT(first.size(), 1000u);
  EXPECT_EQ(first, hashes(folder_ / "again"));
  auto other = hashes(folder_ / "other");
  for (const char* name : {"items.jsonl", "events.tsv", "image_feat.npy", "text_feat.npy"}) {
    EXPECT_NE(first.at(name), other.at(name)) << name;
  }
}

TEST_F(DemoShop, HasTheSizeThatTheConventionsName) {
  const auto rows = events();
  ASSERT_EQ(rows.size(), 45000u);
  std::set<std::string> users;
  std::set<std::pair<std::string, std::string>> pairs;
  for (size_t i = 0; i < rows.size(); ++i) {
    users.insert(rows[i].user);
    pairs.insert({rows[i].user, rows[i].item});
    if (i > 0) {
      ASSERT_GT(rows[i].time, rows[i - 1].time) << "row " << i;
    }
  }
  EXPECT_EQ(users.size(), 3000u);
  EXPECT_EQ(pairs.size(), rows.size());  // nobody buys a thing twice
  EXPECT_LT(rows.back().time - rows.front().time, 366 * 24 * 3600);
  const auto products = items();
  EXPECT_EQ(products.size(), 1200u);
  std::set<std::string> categories;
  for (const Json& p : products) categories.insert(p["categories"][0].get<std::string>());
  EXPECT_EQ(categories.size(), 12u);
}

TEST_F(DemoShop, ATenthOfTheProductsIsNewAfterTheLastCut) {
  const auto rows = events();
  // protocol.md section 3, temporal-global: the 90 % quantile lies between rows 40,500 and 40,501.
  std::set<std::string> before;
  for (size_t i = 0; i < 40500; ++i) before.insert(rows[i].item);
  int64_t n_cold_events = 0;
  for (size_t i = 40500; i < rows.size(); ++i) n_cold_events += before.count(rows[i].item) == 0;
  EXPECT_EQ(before.size(), 1080u);
  EXPECT_GT(n_cold_events, 450);
}

TEST_F(DemoShop, TitlesAreComposedOfTheAttributes) {
  for (const Json& p : items()) {
    const auto title = p["title"].get<std::string>();
    EXPECT_NE(title.find(p["colour"].get<std::string>()), std::string::npos) << title;
    EXPECT_NE(title.find(p["material"].get<std::string>()), std::string::npos) << title;
    EXPECT_NE(title.find(p["categories"][0].get<std::string>()), std::string::npos) << title;
  }
}

TEST_F(DemoShop, PicturesAndFeaturesBelongToProducts) {
  const auto names = read_file(folder_ / "shop" / "image_feat.ids");
  std::istringstream in(names);
  int64_t n_pictured = 0;
  for (std::string id; std::getline(in, id); ++n_pictured) {
    const auto picture = read_file(folder_ / "shop" / "images" / (id + ".png"));
    ASSERT_EQ(picture.substr(0, 8), "\x89PNG\r\n\x1a\n") << id;
    // Width and height stand in bytes 16 to 23 of every PNG file.
    EXPECT_EQ(picture.substr(16, 8), std::string("\0\0\0\x30\0\0\0\x30", 8)) << id;
  }
  EXPECT_GT(n_pictured, 1080);
  EXPECT_LT(n_pictured, 1200);  // some are missing
  const auto image = read_npy(folder_ / "shop" / "image_feat.npy");
  EXPECT_EQ(image.size(0), n_pictured);
  EXPECT_EQ(image.size(1), 12 + 10 + 6);
  const auto text = read_npy(folder_ / "shop" / "text_feat.npy");
  EXPECT_EQ(text.size(0), 1200);
  EXPECT_NE(read_file(folder_ / "shop" / "README.txt").find("made up"), std::string::npos);
}

}  // namespace
}  // namespace tessera
