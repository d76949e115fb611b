package org.json

// What the app uses of Android's JSON classes, with the same behaviour, so that its Kotlin can run
// outside Android.

class JSONException(message: String) : RuntimeException(message)

class JSONObject internal constructor(private val entries: Map<String, Any?>) {
    constructor(text: String) : this(Parser(text).document())

    private fun get(name: String): Any =
        entries[name] ?: throw JSONException("No value for $name")

    fun has(name: String) = name in entries

    fun getInt(name: String) = (get(name) as Double).toInt()

    fun getDouble(name: String) = get(name) as Double

    fun getString(name: String) = get(name) as String

    fun getJSONObject(name: String) = get(name) as JSONObject

    fun getJSONArray(name: String) = get(name) as JSONArray

    fun optBoolean(name: String, fallback: Boolean) = entries[name] as? Boolean ?: fallback

    fun optString(name: String, fallback: String) = entries[name] as? String ?: fallback

    fun optJSONObject(name: String) = entries[name] as? JSONObject

    fun optJSONArray(name: String) = entries[name] as? JSONArray

    fun length() = entries.size
}

class JSONArray internal constructor(private val items: List<Any?>) {
    fun length() = items.size

    fun getInt(index: Int) = (items[index] as Double).toInt()

    fun getDouble(index: Int) = items[index] as Double

    fun getString(index: Int) = items[index] as String

    fun getJSONObject(index: Int) = items[index] as JSONObject

    fun getJSONArray(index: Int) = items[index] as JSONArray

    fun optJSONArray(index: Int) = items[index] as? JSONArray
}

private class Parser(private val text: String) {
    private var at = 0

    @Suppress("UNCHECKED_CAST")
    fun document(): Map<String, Any?> {
        if (peek() != '{') throw JSONException("An object must begin with {")
        return entries()
    }

    private fun peek(): Char {
        while (text.getOrElse(at) { throw JSONException("End of input") }.isWhitespace()) at++
        return text[at]
    }

    private fun skip(expected: Char) {
        if (peek() != expected) throw JSONException("Expected $expected at $at")
        at++
    }

    private fun value(): Any? = when (peek()) {
        '{' -> JSONObject(entries())
        '[' -> JSONArray(items())
        '"' -> string()
        else -> literal()
    }

    private fun entries(): Map<String, Any?> {
        val entries = mutableMapOf<String, Any?>()
        skip('{')
        while (peek() != '}') {
            val name = string()
            skip(':')
            entries[name] = value()
            if (peek() == ',') at++
        }
        at++
        return entries
    }

    private fun items(): List<Any?> {
        val items = mutableListOf<Any?>()
        skip('[')
        while (peek() != ']') {
            items += value()
            if (peek() == ',') at++
        }
        at++
        return items
    }

    private fun string(): String {
        skip('"')
        val end = text.indexOf('"', at)
        return text.substring(at, end).also { at = end + 1 }
    }

    private fun literal(): Any? {
        val start = at
        while (text[at] !in ",]} \n") at++
        return when (val word = text.substring(start, at)) {
            "null" -> null
            "true", "false" -> word.toBoolean()
            else -> word.toDoubleOrNull() ?: throw JSONException("Unexpected $word")
        }
    }
}
