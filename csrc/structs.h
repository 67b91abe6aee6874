// Structs of api.h as Python classes. Every field is a required keyword argument.
//
// These are plain C types instead of pybind11 classes, because a sweep makes several objects per batch. The
// fields of a call are compared with the expected names in order, so an object costs little more than the
// conversion of its fields.  pybind11 would build a dictionary, look every name up as a new string and register
// the object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <pybind11/pybind11.h>

namespace occfast {

namespace py = pybind11;

// A Python object that holds an S.
template <class S> struct Object {
  PyObject_HEAD S value;
};

// The Python class of S, after define_struct().
template <class S> inline PyTypeObject* type_of = nullptr;

// -- read(value, to) converts a Python object and returns nullptr, or a description of the expected value ---

template <class T, std::enable_if_t<std::is_integral_v<T>, int> = 0> const char* read(PyObject* value, T& to) {
  if constexpr (std::is_same_v<T, bool>) {
    to = value == Py_True;
    return PyBool_Check(value) ? nullptr : "a bool";
  } else if constexpr (std::is_unsigned_v<T>) {
    const unsigned long long number = PyLong_AsUnsignedLongLong(value);
    to = static_cast<T>(number);
    return to != number || (number == ~0ULL && PyErr_Occurred()) ? "a non-negative integer in range" : nullptr;
  } else {
    const long long number = PyLong_AsLongLong(value);
    to = static_cast<T>(number);
    return to != number || (number == -1 && PyErr_Occurred()) ? "an integer in range" : nullptr;
  }
}

template <class T, std::enable_if_t<std::is_floating_point_v<T>, int> = 0>
const char* read(PyObject* value, T& to) {
  const double number = PyFloat_AsDouble(value);
  to = static_cast<T>(number);
  return number == -1 && PyErr_Occurred() ? "a number" : nullptr;
}

// Reads the address of a tensor's data, or None.
template <class T> const char* read(PyObject* value, T*& to) {
  to = value == Py_None ? nullptr : static_cast<T*>(PyLong_AsVoidPtr(value));
  return to == nullptr && PyErr_Occurred() ? "an address or None" : nullptr;
}

// Reads an enumerator from its value.  name_of() returns nullptr for other values.
template <class T, std::enable_if_t<std::is_enum_v<T>, int> = 0> const char* read(PyObject* value, T& to) {
  int number = -1;
  if (const char* expected = read(value, number)) return expected;
  to = static_cast<T>(number);
  return name_of(to) ? nullptr : "a value of the enumeration";
}

// Reads at most `most` numbers from a sequence. Returns their number, or -1 if there are more or an element has
// another type.
template <class T> Py_ssize_t read_sequence(PyObject* value, T* to, Py_ssize_t most) {
  PyObject* items = PySequence_Fast(value, "not a sequence");
  Py_ssize_t count = items ? PySequence_Fast_GET_SIZE(items) : -1;
  if (count > most) count = -1;
  for (Py_ssize_t k = 0; k < count; ++k)
    if (read(PySequence_Fast_GET_ITEM(items, k), to[k])) count = -1;
  Py_XDECREF(items);
  return count;
}

template <class T, size_t count> const char* read(PyObject* value, T (&to)[count]) {
  return read_sequence(value, to, count) == Py_ssize_t{count} ? nullptr : "a sequence of the right length";
}

// Reads any other struct from an object of its class.
template <class T, std::enable_if_t<std::is_class_v<T>, int> = 0> const char* read(PyObject* value, T& to) {
  if (Py_TYPE(value) != type_of<T>) return "an object of its class";
  to = reinterpret_cast<Object<T>*>(value)->value;
  return nullptr;
}

// -- classes ---------------------------------------------------------------------------------------------

// A member of a struct: its name, its offset and the read() of its type.
struct Field {
  PyObject* name; // interned, never freed
  size_t offset;
  const char* (*read)(PyObject* value, void* to);
};

template <class T> Field field(const char* name, size_t offset) {
  return {PyUnicode_InternFromString(name), offset,
          [](PyObject* value, void* to) { return read(value, *static_cast<T*>(to)); }};
}

struct Fields {
  const char* name;      // of the struct
  std::string qualified; // with the module; older versions of Python keep a pointer to it
  std::vector<Field> fields;

  // Returns the index of the field with this name, or -1.
  Py_ssize_t find(PyObject* wanted) const {
    for (size_t k = 0; k < fields.size(); ++k)
      if (PyUnicode_Compare(fields[k].name, wanted) == 0) return static_cast<Py_ssize_t>(k);
    return -1;
  }

  // Fills a struct from the arguments of a call. Returns false with a Python error if they do not fit.
  bool read(PyObject* const* arguments, Py_ssize_t positional, PyObject* names, void* to) const {
    if (positional > 0) {
      PyErr_Format(PyExc_TypeError, "%s: every field must be given by name", name);
      return false;
    }
    uint64_t missing = (uint64_t{1} << fields.size()) - 1;
    const Py_ssize_t given = names ? PyTuple_GET_SIZE(names) : 0;
    for (Py_ssize_t k = 0; k < given; ++k) {
      PyObject* keyword = PyTuple_GET_ITEM(names, k);
      const bool in_order = k < static_cast<Py_ssize_t>(fields.size()) && fields[k].name == keyword;
      const Py_ssize_t index = in_order ? k : find(keyword);
      if (index < 0) {
        PyErr_Format(PyExc_TypeError, "%s: there is no field %R", name, keyword);
        return false;
      }
      const Field& field = fields[index];
      if (const char* expected = field.read(arguments[k], static_cast<char*>(to) + field.offset)) {
        PyErr_Format(PyExc_TypeError, "%s.%U: expected %s, got %R", name, keyword, expected, arguments[k]);
        return false;
      }
      missing &= ~(uint64_t{1} << index);
    }
    for (size_t k = 0; k < fields.size(); ++k)
      if (missing >> k & 1) {
        PyErr_Format(PyExc_TypeError, "%s: %U is missing", name, fields[k].name);
        return false;
      }
    return true;
  }
};

template <class S> inline Fields fields_of{};

template <class S> PyObject* make_object(PyObject*, PyObject* const* arguments, size_t count, PyObject* names) {
  auto* made = PyObject_New(Object<S>, type_of<S>);
  if (!made) return nullptr;
  made->value = S{};
  if (fields_of<S>.read(arguments, PyVectorcall_NARGS(count), names, &made->value))
    return reinterpret_cast<PyObject*>(made);
  Py_DECREF(made);
  return nullptr;
}

inline void free_object(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  PyObject_Free(object);
  Py_DECREF(type);
}

// Defines the Python class of S, whose attribute `fields` is the tuple of its field names.
template <class S> void define_struct(py::module_& m, const char* name, std::vector<Field> fields) {
  static_assert(std::is_standard_layout_v<S> && std::is_trivially_copyable_v<S>);
  if (fields.size() >= 64) throw std::length_error(name);
  py::tuple names(fields.size());
  for (size_t k = 0; k < fields.size(); ++k) names[k] = py::reinterpret_borrow<py::str>(fields[k].name);
  PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(&free_object)}, {0, nullptr}};
  fields_of<S> = {name, py::cast<std::string>(m.attr("__name__")) + "." + name, std::move(fields)};
  PyType_Spec spec{fields_of<S>.qualified.c_str(), static_cast<int>(sizeof(Object<S>)), 0,
                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
  const auto made = py::reinterpret_steal<py::object>(PyType_FromSpec(&spec));
  if (!made) throw py::error_already_set();
  made.attr("fields") = names;
  type_of<S> = reinterpret_cast<PyTypeObject*>(made.ptr());
  type_of<S>->tp_vectorcall = &make_object<S>;
  m.attr(name) = made;
}

// Returns the struct in an argument of a function.
template <class S> const S& value_of(py::handle argument) {
  if (Py_TYPE(argument.ptr()) != type_of<S>)
    throw py::type_error(std::string("expected an object of ") + fields_of<S>.name + ", got " +
                         py::cast<std::string>(py::repr(argument)));
  return reinterpret_cast<Object<S>*>(argument.ptr())->value;
}

} // namespace occfast
