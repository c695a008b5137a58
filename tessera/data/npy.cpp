#include "tessera/data/npy.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstring>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/data/mapped_file.h"

namespace tessera {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr size_t kMaxHead = 1 << 16;

/// The three keys of the head, a Python dictionary literal.
struct Literal {
  std::string descr;
  bool fortran_order = false;
  std::vector<int64_t> shape;
};

/// Reads just the literals that numpy writes into a head: strings, True, False, tuples of integers.
class LiteralReader {
 public:
  LiteralReader(std::string_view text, const std::string& what) : text_(text), what_(what) {}

  Literal read() {
    Literal out;
    bool descr = false, order = false, shape = false;
    expect('{');
    while (!take('}')) {
      const std::string key = quoted();
      expect(':');
      if (key == "descr") {
        descr = true;
        skip();
        if (!rest().empty() && rest()[0] == '[') {
          throw data_error("{}: an array of records, wanted plain numbers; save one column", what_);
        }
        out.descr = quoted();
      } else if (key == "fortran_order") {
        order = true;
        out.fortran_order = boolean();
      } else if (key == "shape") {
        shape = true;
        out.shape = tuple();
      } else {
        fail();
      }
      if (!take(',')) {
        expect('}');
        break;
      }
    }
    skip();
    if (at_ != text_.size() || !descr || !order || !shape) fail();
    return out;
  }

 private:
  std::string_view rest() const { return text_.substr(at_); }
  void skip() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
  }
  bool take(char c) {
    skip();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail();
  }
  std::string quoted() {
    skip();
    if (at_ >= text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) fail();
    const size_t end = text_.find(text_[at_], at_ + 1);
    if (end == std::string_view::npos) fail();
    std::string out(text_.substr(at_ + 1, end - at_ - 1));
    at_ = end + 1;
    return out;
  }
  bool boolean() {
    skip();
    for (const bool value : {true, false}) {
      const std::string_view word = value ? "True" : "False";
      if (rest().starts_with(word)) {
        at_ += word.size();
        return value;
      }
    }
    fail();
  }
  std::vector<int64_t> tuple() {
    std::vector<int64_t> out;
    expect('(');
    while (!take(')')) {
      skip();
      int64_t n = -1;
      const auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), n);
      if (error != std::errc{} || n < 0 || out.size() >= 32) fail();
      out.push_back(n);
      at_ = static_cast<size_t>(end - text_.data());
      take('L');  // Python 2 wrote long integers so
      if (!take(',')) {
        expect(')');
        break;
      }
    }
    return out;
  }
  [[noreturn]] void fail() const {
    throw data_error("{}: the head of the .npy file is damaged at '{}'", what_,
                     printable(rest(), 20));
  }

  std::string_view text_;
  const std::string& what_;
  size_t at_ = 0;
};

torch::ScalarType dtype_of(const std::string& descr, const std::string& what) {
  for (const auto& [name, dtype] : {std::pair{"f2", torch::kHalf},
                                    {"f4", torch::kFloat},
                                    {"f8", torch::kDouble},
                                    {"i4", torch::kInt},
                                    {"i8", torch::kLong}}) {
    if (descr == std::string("<") + name) return dtype;
    if (descr == std::string(">") + name) {
      throw data_error("{}: big-endian numbers ('{}'); save with array.astype('<{}')", what, descr,
                       name);
    }
  }
  if (descr.find('O') != std::string::npos) {
    throw data_error("{}: pickled Python objects are not read; save array.astype('float32')", what);
  }
  throw data_error(
      "{}: dtype '{}', wanted float16, float32 or float64; save array.astype('float32')", what,
      printable(descr, 20));
}

const char* descr_of(torch::ScalarType dtype) {
  switch (dtype) {
    case torch::kHalf:
      return "<f2";
    case torch::kFloat:
      return "<f4";
    case torch::kDouble:
      return "<f8";
    case torch::kInt:
      return "<i4";
    case torch::kLong:
      return "<i8";
    default:
      TORCH_CHECK(false, "a .npy file of ", dtype, " is not written");
  }
}

}  // namespace

NpyHeader parse_npy(std::string_view file, const std::string& what) {
  if (file.empty()) throw data_error("{}: empty file, wanted a .npy array", what);
  if (!file.starts_with(kMagic)) {
    if (file.starts_with("\x80")) {
      throw data_error("{}: a Python pickle, which is not read; save with numpy.save", what);
    }
    throw data_error("{}: not a .npy file (starts with '{}')", what, printable(file.substr(0, 8)));
  }
  if (file.size() < 10) throw data_error("{}: truncated .npy file of {} bytes", what, file.size());
  const auto byte = [&](size_t i) {
    return static_cast<size_t>(static_cast<unsigned char>(file[i]));
  };
  const size_t version = byte(6);
  if (version < 1 || version > 3) {
    throw data_error("{}: .npy version {}, wanted 1, 2 or 3", what, version);
  }
  const size_t begin = version == 1 ? 10 : 12;
  if (file.size() < begin)
    throw data_error("{}: truncated .npy file of {} bytes", what, file.size());
  const size_t length = version == 1 ? byte(8) | byte(9) << 8
                                     : byte(8) | byte(9) << 8 | byte(10) << 16 | byte(11) << 24;
  if (length > file.size() - begin) {
    throw data_error("{}: truncated .npy file: {} bytes, its head alone takes {}", what,
                     file.size(), begin + length);
  }
  if (length > kMaxHead)
    throw data_error("{}: the head of the .npy file takes {} bytes", what, length);
  const Literal literal = LiteralReader(file.substr(begin, length), what).read();

  NpyHeader out;
  out.dtype = dtype_of(literal.descr, what);
  if (literal.fortran_order) {
    throw data_error("{}: columns first (Fortran order); save with numpy.ascontiguousarray", what);
  }
  out.shape = literal.shape;
  out.data_offset = begin + length;
  int64_t wanted = static_cast<int64_t>(c10::elementSize(out.dtype));
  bool overflow = false;
  for (const int64_t n : out.shape) overflow |= __builtin_mul_overflow(wanted, n, &wanted);
  const size_t found = file.size() - out.data_offset;
  if (overflow || static_cast<size_t>(wanted) > found) {
    throw data_error("{}: truncated: shape [{}] of {} does not fit into the {} bytes found", what,
                     fmt::join(out.shape, ", "), literal.descr, found);
  }
  if (static_cast<size_t>(wanted) < found) {
    throw data_error("{}: {} bytes after the array; wanted one array a file", what,
                     found - static_cast<size_t>(wanted));
  }
  return out;
}

std::string npy_head(torch::ScalarType dtype, const std::vector<int64_t>& shape) {
  std::string dict =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}", descr_of(dtype),
                  fmt::join(shape, ", "), shape.size() == 1 ? "," : "");
  const size_t length = (10 + dict.size() + 1 + 63) / 64 * 64 - 10;
  dict.resize(length - 1, ' ');
  dict += '\n';
  std::string out(kMagic);
  out += '\x01';
  out += '\x00';
  out += static_cast<char>(length & 0xff);
  out += static_cast<char>(length >> 8);
  return out + dict;
}

void write_npy(const std::filesystem::path& path, const torch::Tensor& tensor) {
  TORCH_CHECK(tensor.dim() == 1 || tensor.dim() == 2, "write_npy: one or two dimensions");
  const torch::Tensor rows = tensor.detach().cpu().contiguous();
  const std::string head = npy_head(rows.scalar_type(), rows.sizes().vec());
  write_file_with(path, [&](std::ostream& out) {
    out.write(head.data(), static_cast<std::streamsize>(head.size()));
    out.write(static_cast<const char*>(rows.const_data_ptr()),
              static_cast<std::streamsize>(rows.nbytes()));
  });
}

torch::Tensor read_npy(const std::filesystem::path& path) {
  const MappedFile file = map_file(path);
  const NpyHeader head = parse_npy(file.bytes, path.string());
  if (head.shape.empty() || head.shape.size() > 2) {
    throw data_error("{}: {} dimensions, wanted one or two", path.string(), head.shape.size());
  }
  torch::Tensor out = torch::empty(head.shape, head.dtype);
  if (out.nbytes() > 0) {
    std::memcpy(out.mutable_data_ptr(), file.bytes.data() + head.data_offset, out.nbytes());
  }
  return out;
}

}  // namespace tessera
