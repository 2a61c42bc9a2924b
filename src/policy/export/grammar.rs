//! A small reader of Cedar's grammar: enough to tell that what we write is Cedar.

/// Reads policies; the error says where it ends to be Cedar.
pub(super) fn read_policies(text: &str) -> Result<usize, String> {
    let mut reader = Reader { tokens: tokens(text)?, at: 0 };
    let mut count = 0;
    while reader.at < reader.tokens.len() {
        reader.policy()?;
        count += 1;
    }
    Ok(count)
}

/// Reads a schema.
pub(super) fn read_schema(text: &str) -> Result<(), String> {
    let mut reader = Reader { tokens: tokens(text)?, at: 0 };
    reader.expect("namespace")?;
    reader.next()?;
    reader.expect("{")?;
    while !reader.take("}") {
        match reader.next()?.as_str() {
            "entity" => {
                reader.next()?;
                if reader.take("=") {
                    reader.r#type()?;
                }
            }
            "type" => {
                reader.next()?;
                reader.expect("=")?;
                reader.r#type()?;
            }
            "action" => {
                reader.next()?;
                reader.expect("appliesTo")?;
                reader.expect("{")?;
                while !reader.take("}") {
                    reader.next()?;
                    reader.expect(":")?;
                    if reader.take("[") {
                        while !reader.take("]") {
                            reader.next()?;
                            reader.take(",");
                        }
                    } else {
                        reader.r#type()?;
                    }
                    reader.take(",");
                }
            }
            other => return Err(format!("{other} begins nothing")),
        }
        reader.expect(";")?;
    }
    if reader.at == reader.tokens.len() { Ok(()) } else { Err("more follows".into()) }
}

fn tokens(text: &str) -> Result<Vec<String>, String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let Some(first) = rest.chars().next() else { return Ok(tokens) };
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
            continue;
        }
        let length = if first == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|char| {
                let ends = char == '"' && !escaped;
                escaped = char == '\\' && !escaped;
                ends
            });
            end.ok_or("a text does not end")? + 2
        } else if first.is_ascii_alphanumeric() || first == '_' {
            rest.find(|char: char| !(char.is_ascii_alphanumeric() || char == '_'))
                .unwrap_or(rest.len())
        } else if ["&&", "||", "==", "!=", ">=", "<=", "::"].iter().any(|two| rest.starts_with(two))
        {
            2
        } else {
            first.len_utf8()
        };
        tokens.push(rest[..length].to_owned());
        rest = &rest[length..];
    }
}

struct Reader {
    tokens: Vec<String>,
    at: usize,
}

impl Reader {
    fn peek(&self) -> &str {
        self.tokens.get(self.at).map_or("", String::as_str)
    }

    fn next(&mut self) -> Result<String, String> {
        let token = self.tokens.get(self.at).cloned().ok_or("ends too early")?;
        self.at += 1;
        Ok(token)
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.peek() == token;
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.take(token) {
            return Ok(());
        }
        let before = self.tokens[self.at.saturating_sub(8)..self.at].join(" ");
        Err(format!("expected {token}, found {} after {before}", self.peek()))
    }

    fn is_text(token: &str) -> bool {
        token.starts_with('"')
    }

    fn is_name(token: &str) -> bool {
        token.starts_with(|char: char| char.is_ascii_alphabetic() || char == '_')
    }

    fn r#type(&mut self) -> Result<(), String> {
        if self.take("{") {
            while !self.take("}") {
                let name = self.next()?;
                if !Self::is_name(&name) && !Self::is_text(&name) {
                    return Err(format!("{name} is no member's name"));
                }
                self.take("?");
                self.expect(":")?;
                self.r#type()?;
                if !self.take(",") && self.peek() != "}" {
                    return Err("a record's members stand with commas between them".into());
                }
            }
            return Ok(());
        }
        let name = self.next()?;
        if !Self::is_name(&name) {
            return Err(format!("{name} is no type"));
        }
        if self.take("<") {
            self.r#type()?;
            self.expect(">")?;
        }
        Ok(())
    }

    fn policy(&mut self) -> Result<(), String> {
        while self.take("@") {
            self.next()?;
            self.expect("(")?;
            if !Self::is_text(&self.next()?) {
                return Err("an annotation is a text".into());
            }
            self.expect(")")?;
        }
        if !self.take("permit") {
            self.expect("forbid")?;
        }
        self.expect("(")?;
        for (part, last) in [("principal", false), ("action", false), ("resource", true)] {
            self.expect(part)?;
            if self.take("is") {
                self.name()?;
            } else if self.take("==") {
                self.entity()?;
            }
            if !last {
                self.expect(",")?;
            }
        }
        self.expect(")")?;
        while self.take("when") || self.take("unless") {
            self.expect("{")?;
            self.or()?;
            self.expect("}")?;
        }
        self.expect(";")
    }

    fn name(&mut self) -> Result<(), String> {
        loop {
            let name = self.next()?;
            if !Self::is_name(&name) {
                return Err(format!("{name} is no name"));
            }
            if !self.take("::") {
                return Ok(());
            }
        }
    }

    fn entity(&mut self) -> Result<(), String> {
        loop {
            let name = self.next()?;
            if Self::is_text(&name) {
                return Ok(());
            }
            self.expect("::")?;
        }
    }

    fn or(&mut self) -> Result<(), String> {
        self.and()?;
        while self.take("||") {
            self.and()?;
        }
        Ok(())
    }

    fn and(&mut self) -> Result<(), String> {
        self.relation()?;
        while self.take("&&") {
            self.relation()?;
        }
        Ok(())
    }

    fn relation(&mut self) -> Result<(), String> {
        self.unary()?;
        if ["==", "!=", ">=", "<=", "<", ">", "in"].iter().any(|operator| self.take(operator)) {
            return self.unary();
        }
        if self.take("has") {
            let name = self.next()?;
            return match Self::is_name(&name) || Self::is_text(&name) {
                true => Ok(()),
                false => Err(format!("has {name}")),
            };
        }
        if self.take("like") {
            return match Self::is_text(&self.next()?) {
                true => Ok(()),
                false => Err("like asks for a pattern".into()),
            };
        }
        if self.take("is") {
            return self.name();
        }
        Ok(())
    }

    fn unary(&mut self) -> Result<(), String> {
        while self.take("!") {}
        self.member()
    }

    fn member(&mut self) -> Result<(), String> {
        if self.take("(") {
            self.or()?;
            self.expect(")")?;
        } else if self.take("[") {
            while !self.take("]") {
                self.or()?;
                if !self.take(",") && self.peek() != "]" {
                    return Err("a set's members stand with commas between them".into());
                }
            }
        } else {
            let token = self.next()?;
            let number = token.bytes().all(|b| b.is_ascii_digit());
            let known = ["principal", "action", "resource", "context", "true", "false"];
            if token == "ip" {
                self.expect("(")?;
                self.or()?;
                self.expect(")")?;
            } else if !(number || Self::is_text(&token) || known.contains(&token.as_str())) {
                return Err(format!("{token} is no expression"));
            }
        }
        loop {
            if self.take(".") {
                let name = self.next()?;
                if !Self::is_name(&name) {
                    return Err(format!("{name} is no member"));
                }
                if self.take("(") && !self.take(")") {
                    self.or()?;
                    self.expect(")")?;
                }
            } else if self.take("[") {
                if !Self::is_text(&self.next()?) {
                    return Err("a member in brackets is a text".into());
                }
                self.expect("]")?;
            } else {
                return Ok(());
            }
        }
    }
}
