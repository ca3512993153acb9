// A reader of JSON (RFC 8259), enough for a bundle's manifest and an engine's sidecar.
#pragma once

#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace resnet {

class Json {
public:
    enum class Kind { null, boolean, number, text, list, object };

    static Json parse(std::string const& source) {
        Reader reader{source};
        Json value = reader.value();
        reader.skip_blanks();
        if (reader.place != source.size()) {
            reader.fail("the end");
        }
        return value;
    }

    Kind kind() const { return kind_; }
    bool is_null() const { return kind_ == Kind::null; }
    double number() const { return expected(Kind::number, "a number"), number_; }
    int64_t integer() const { return static_cast<int64_t>(number()); }
    bool boolean() const { return expected(Kind::boolean, "true or false"), number_ != 0; }
    std::string const& text() const { return expected(Kind::text, "a text"), text_; }
    std::vector<Json> const& list() const { return expected(Kind::list, "a list"), list_; }
    bool has(std::string const& name) const { return kind_ == Kind::object && object_.count(name) > 0; }

    // A member of an object; an error that names it where there is none.
    Json const& operator[](std::string const& name) const {
        expected(Kind::object, "an object");
        auto const found = object_.find(name);
        if (found == object_.end()) {
            throw std::runtime_error("expected the field '" + name + "', got none");
        }
        return found->second;
    }

private:
    struct Reader {
        std::string const& source;
        size_t place = 0;
        int depth = 0;

        [[noreturn]] void fail(std::string const& wanted) const {
            throw std::runtime_error("expected " + wanted + " at byte " + std::to_string(place) + " of a JSON text");
        }

        void skip_blanks() {
            while (place < source.size() && std::string(" \t\r\n").find(source[place]) != std::string::npos) {
                ++place;
            }
        }

        bool take(char wanted) {
            skip_blanks();
            if (place < source.size() && source[place] == wanted) {
                ++place;
                return true;
            }
            return false;
        }

        void word(std::string const& wanted) {
            if (source.compare(place, wanted.size(), wanted) != 0) {
                fail("'" + wanted + "'");
            }
            place += wanted.size();
        }

        Json value() {
            if (++depth > 64) {
                fail("fewer levels");
            }
            skip_blanks();
            Json result;
            char const first = place < source.size() ? source[place] : '\0';
            if (take('{')) {
                result.kind_ = Kind::object;
                while (!take('}')) {
                    if (!result.object_.empty() && !take(',')) {
                        fail("',' or '}'");
                    }
                    skip_blanks();
                    std::string const name = string();
                    if (!take(':')) {
                        fail("':'");
                    }
                    result.object_[name] = value();
                }
            } else if (take('[')) {
                result.kind_ = Kind::list;
                while (!take(']')) {
                    if (!result.list_.empty() && !take(',')) {
                        fail("',' or ']'");
                    }
                    result.list_.push_back(value());
                }
            } else if (first == '"') {
                result.kind_ = Kind::text;
                result.text_ = string();
            } else if (first == 't' || first == 'f') {
                word(first == 't' ? "true" : "false");
                result.kind_ = Kind::boolean;
                result.number_ = first == 't';
            } else if (first == 'n') {
                word("null");
            } else if (first == '-' || std::isdigit(static_cast<unsigned char>(first))) {
                char* end = nullptr;
                result.kind_ = Kind::number;
                result.number_ = std::strtod(source.c_str() + place, &end);
                place = static_cast<size_t>(end - source.c_str());
            } else {
                fail("a value");
            }
            --depth;
            return result;
        }

        unsigned hex() {
            if (place + 4 > source.size()) {
                fail("four digits");
            }
            unsigned const code = static_cast<unsigned>(std::strtoul(source.substr(place, 4).c_str(), nullptr, 16));
            place += 4;
            return code;
        }

        static void append_utf8(std::string& text, unsigned code) {
            if (code < 0x80) {
                text += static_cast<char>(code);
            } else if (code < 0x800) {
                text += static_cast<char>(0xC0 | code >> 6);
                text += static_cast<char>(0x80 | (code & 0x3F));
            } else if (code < 0x10000) {
                text += static_cast<char>(0xE0 | code >> 12);
                text += static_cast<char>(0x80 | (code >> 6 & 0x3F));
                text += static_cast<char>(0x80 | (code & 0x3F));
            } else {
                text += static_cast<char>(0xF0 | code >> 18);
                text += static_cast<char>(0x80 | (code >> 12 & 0x3F));
                text += static_cast<char>(0x80 | (code >> 6 & 0x3F));
                text += static_cast<char>(0x80 | (code & 0x3F));
            }
        }

        std::string string() {
            if (place >= source.size() || source[place] != '"') {
                fail("a text");
            }
            std::string result;
            for (++place; place < source.size() && source[place] != '"';) {
                char const one = source[place++];
                if (one != '\\') {
                    result += one;
                    continue;
                }
                char const escaped = place < source.size() ? source[place++] : '\0';
                static std::string const names = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
                size_t const known = names.find(escaped);
                if (escaped != '\0' && known != std::string::npos) {
                    result += meant[known];
                } else if (escaped == 'u') {
                    unsigned code = hex();
                    if (code >= 0xD800 && code < 0xDC00 && source.compare(place, 2, "\\u") == 0) {
                        place += 2;
                        code = 0x10000 + ((code - 0xD800) << 10) + (hex() - 0xDC00);
                    }
                    append_utf8(result, code);
                } else {
                    fail("an escape");
                }
            }
            if (place >= source.size()) {
                fail("'\"'");
            }
            ++place;
            return result;
        }
    };

    void expected(Kind kind, char const* name) const {
        if (kind_ != kind) {
            throw std::runtime_error(std::string("expected ") + name + " in a JSON text, got something else");
        }
    }

    Kind kind_ = Kind::null;
    double number_ = 0;
    std::string text_;
    std::vector<Json> list_;
    std::map<std::string, Json> object_;
};

}  // namespace resnet
